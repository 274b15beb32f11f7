// after the snippet of docs/clients.md: `client`, `messages`, `answer`
import assert from "node:assert/strict";

const ask = (messages, more) =>
  client.chat.completions.create({ model: "smollm2-135m-instruct", messages, max_tokens: 16, temperature: 0, ...more });

const first = answer.usage.prompt_tokens;
const again = await ask([...messages, answer.choices[0].message, { role: "user", content: "Again?" }]);
assert.ok(again.usage.prompt_tokens > first + 8);

let text = "";
for await (const part of await ask(messages, { stream: true })) text += part.choices[0]?.delta?.content ?? "";
assert.ok(text);
const whole = await client.chat.completions.stream({ model: "smollm2-135m-instruct", messages, max_tokens: 8 }).finalMessage();
assert.ok((await ask([...messages, whole, { role: "user", content: "Again?" }])).choices[0].message.content);

const call = { id: "call_1", type: "function", function: { name: "weather", arguments: '{"city": "Cologne"}' } };
const history = [
  ...messages,
  { role: "assistant", content: null, tool_calls: [call] },
  { role: "tool", tool_call_id: "call_1", content: "It rains in Cologne." },
];
assert.ok((await ask(history)).usage.prompt_tokens > first + 25);
await assert.rejects(ask([{ role: "user", content: "word ".repeat(20000) }]), { code: "context_length_exceeded" });
console.log("openai (npm) done");
