// after the snippet of docs/clients.md: `model`, `answer`
import assert from "node:assert/strict";

const user = (content) => ({ role: "user", content });
const first = answer.usage.inputTokens;
const turns = [user("Hello!"), ...answer.response.messages, user("Again?")];
const again = await generateText({ model, messages: turns, maxOutputTokens: 16, temperature: 0 });
assert.ok(again.usage.inputTokens > first + 8);

let text = "";
for await (const part of streamText({ model, messages: turns, maxOutputTokens: 16, temperature: 0 }).textStream) text += part;
assert.ok(text);

const call = { type: "tool-call", toolCallId: "call_1", toolName: "weather", input: { city: "Cologne" } };
const output = { type: "text", value: "It rains in Cologne." };
const history = [
  user("Hello!"),
  { role: "assistant", content: [call] },
  { role: "tool", content: [{ type: "tool-result", toolCallId: "call_1", toolName: "weather", output }] },
];
const told = await generateText({ model, messages: history, maxOutputTokens: 16, temperature: 0 });
assert.ok(told.usage.inputTokens > first + 25);
console.log("ai sdk done");
