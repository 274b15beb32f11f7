// after the snippet of docs/clients.md: `model`, `dispatcher`
import assert from "node:assert/strict";
import { generateObject, jsonSchema, stepCountIs, streamObject, tool } from "ai";

const schema = jsonSchema({
  type: "object",
  properties: { city: { type: "string", maxLength: 20 }, days: { type: "integer", minimum: 1, maximum: 9 } },
  required: ["city", "days"],
  additionalProperties: false,
});
const ran = [];
const tools = {
  weather: tool({ description: "The weather", inputSchema: schema, execute: async (input) => { ran.push(input); return "It rains."; } }),
};
// a model of this size does not choose well: it calls first, and then it answers
const prepareStep = ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "none" });
const asked = { model, prompt: "What is the weather in Cologne?", tools, prepareStep, stopWhen: stepCountIs(2), maxOutputTokens: 300, seed: 1 };

const done = await generateText(asked);
assert.ok(ran.length >= 1 && done.steps.length === 2 && done.text);
assert.deepEqual(Object.keys(ran[0]).sort(), ["city", "days"]);

ran.length = 0;
const kinds = new Set();
for await (const part of streamText({ ...asked, seed: 2 }).fullStream) kinds.add(part.type);
assert.ok(ran.length >= 1 && kinds.has("tool-input-delta") && kinds.has("tool-result") && kinds.has("text-delta"));

const held = createOpenAICompatible({
  name: "llmd", baseURL: "https://127.0.0.1:8443/v1", supportsStructuredOutputs: true,
  fetch: (url, init) => fetch(url, { ...init, dispatcher }),
})("smollm2-135m-instruct");
const { object } = await generateObject({ model: held, schema, prompt: "The weather in Cologne?", maxOutputTokens: 200 });
assert.deepEqual(Object.keys(object).sort(), ["city", "days"]);
let last;
for await (const part of streamObject({ model: held, schema, prompt: "The weather?", maxOutputTokens: 200 }).partialObjectStream) last = part;
assert.deepEqual(Object.keys(last).sort(), ["city", "days"]);
console.log("ai sdk agent done");
