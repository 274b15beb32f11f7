// after the snippet of docs/clients.md: `client`
import assert from "node:assert/strict";

const model = "smollm2-135m-instruct";
const parameters = {
  type: "object",
  properties: { city: { type: "string", maxLength: 20 }, days: { type: "integer", minimum: 1, maximum: 9 } },
  required: ["city", "days"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "weather", parameters, strict: true } }];
const turns = [{ role: "user", content: "What is the weather in Cologne?" }];
const ask = (more) => client.chat.completions.create({ model, messages: turns, max_tokens: 300, seed: 1, ...more });
const keys = (text) => Object.keys(JSON.parse(text)).sort().join();

const called = (await ask({ tools, tool_choice: "required" })).choices[0];
assert.equal(called.finish_reason, "tool_calls");
assert.equal(keys(called.message.tool_calls[0].function.arguments), "city,days");
turns.push(called.message);
for (const call of called.message.tool_calls) turns.push({ role: "tool", tool_call_id: call.id, content: "It rains." });
assert.ok((await ask({ tools, tool_choice: "none" })).choices[0].message.content);

const whole = await client.chat.completions
  .stream({ model, messages: turns, tools, tool_choice: "required", max_tokens: 300, seed: 2 })
  .finalMessage();
assert.equal(keys(whole.tool_calls[0].function.arguments), "city,days");

const form = { type: "json_schema", json_schema: { name: "weather", schema: parameters, strict: true } };
const held = await client.chat.completions.parse({ model, messages: turns, response_format: form, max_tokens: 200 });
assert.equal(keys(held.choices[0].message.content), "city,days");

let ran = 0;
const runner = client.chat.completions.runTools({
  model, messages: turns.slice(0, 1), max_tokens: 300, seed: 3, tool_choice: { type: "function", function: { name: "weather" } },
  tools: [{ type: "function", function: { name: "weather", parameters, parse: JSON.parse, function: () => { ran += 1; return "It rains."; } } }],
});
await runner.done();
assert.ok(ran >= 1);
console.log("openai (npm) agent done");
