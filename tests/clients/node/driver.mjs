// Runs the JavaScript clients: a request per line of standard input, its outcome on one line of standard output.
//
//   in   {client, step, base, key, model, text, retries}
//   out  {text, usage: {input, output, cached}, tools: [{name, arguments}], models, error: {name, status, code}}
//
// `usage` is what the client shows its user, put into common names: input with what a cache had, output with reasoning.

import { createInterface } from "node:readline";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import Anthropic from "@anthropic-ai/sdk";
import { GoogleGenAI } from "@google/genai";
import { generateText, jsonSchema, streamText, tool } from "ai";
import OpenAI from "openai";

const PARAMETERS = { type: "object", properties: { city: { type: "string" } } };

const openaiClient = ({ base, key, retries }) =>
  new OpenAI({ baseURL: `${base}/v1`, apiKey: key, maxRetries: retries });
const messages = (text) => [{ role: "user", content: text }];
const chatUsage = (usage) => usage && {
  input: usage.prompt_tokens, output: usage.completion_tokens, cached: usage.prompt_tokens_details.cached_tokens,
};
const responsesUsage = (usage) => usage && {
  input: usage.input_tokens, output: usage.output_tokens, cached: usage.input_tokens_details.cached_tokens,
};

const openaiChat = {
  async json(request) {
    const answer = await openaiClient(request).chat.completions.create({
      model: request.model, messages: messages(request.text),
    });
    return { text: answer.choices[0].message.content, usage: chatUsage(answer.usage) };
  },
  async stream(request) {
    const stream = await openaiClient(request).chat.completions.create({
      model: request.model, messages: messages(request.text), stream: true, stream_options: { include_usage: true },
    });
    let text = "", usage = null;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
    }
    return { text, usage: chatUsage(usage) };
  },
  async tools(request) {
    const answer = await openaiClient(request).chat.completions.create({
      model: request.model, messages: messages(request.text),
      tools: [{ type: "function", function: { name: "look_up", parameters: PARAMETERS } }],
    });
    const calls = answer.choices[0].message.tool_calls;
    return {
      tools: calls.map((call) => ({ name: call.function.name, arguments: JSON.parse(call.function.arguments) })),
      usage: chatUsage(answer.usage),
    };
  },
  async models(request) {
    const models = [];
    for await (const model of openaiClient(request).models.list()) models.push(model.id);
    return { models };
  },
};

const openaiResponses = {
  async json(request) {
    const answer = await openaiClient(request).responses.create({ model: request.model, input: request.text });
    return { text: answer.output_text, usage: responsesUsage(answer.usage) };
  },
  async stream(request) {
    const stream = await openaiClient(request).responses.create({
      model: request.model, input: request.text, stream: true,
    });
    let text = "", usage = null;
    for await (const event of stream) {
      if (event.type === "response.output_text.delta") text += event.delta;
      if (event.type === "response.completed") usage = event.response.usage;
    }
    return { text, usage: responsesUsage(usage) };
  },
  async tools(request) {
    const answer = await openaiClient(request).responses.create({
      model: request.model, input: request.text,
      tools: [{ type: "function", name: "look_up", parameters: PARAMETERS, strict: false }],
    });
    const calls = answer.output.filter((item) => item.type === "function_call");
    return {
      tools: calls.map((call) => ({ name: call.name, arguments: JSON.parse(call.arguments) })),
      usage: responsesUsage(answer.usage),
    };
  },
};

const anthropicClient = ({ base, key, retries }) => new Anthropic({ baseURL: base, apiKey: key, maxRetries: retries });
const anthropicRequest = ({ model, text }) => ({ model, max_tokens: 500, messages: messages(text) });
const anthropicUsage = (usage) => ({
  input: usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens,
  output: usage.output_tokens, cached: usage.cache_read_input_tokens,
});

const anthropic = {
  async json(request) {
    const answer = await anthropicClient(request).messages.create(anthropicRequest(request));
    return { text: answer.content[0].text, usage: anthropicUsage(answer.usage) };
  },
  async stream(request) {
    const stream = anthropicClient(request).messages.stream(anthropicRequest(request));
    let text = "";
    stream.on("text", (delta) => { text += delta; });
    return { usage: anthropicUsage((await stream.finalMessage()).usage), text };
  },
  async tools(request) {
    const answer = await anthropicClient(request).messages.create({
      ...anthropicRequest(request), tools: [{ name: "look_up", input_schema: PARAMETERS }],
    });
    const calls = answer.content.filter((block) => block.type === "tool_use");
    return {
      tools: calls.map((call) => ({ name: call.name, arguments: call.input })), usage: anthropicUsage(answer.usage),
    };
  },
  async models(request) {
    const models = [];
    for await (const model of anthropicClient(request).models.list()) models.push(model.id);
    return { models };
  },
};

const geminiClient = ({ base, key }) => new GoogleGenAI({ apiKey: key, httpOptions: { baseUrl: base } });
const geminiUsage = (usage) => ({
  input: usage.promptTokenCount, output: usage.candidatesTokenCount + (usage.thoughtsTokenCount ?? 0),
  cached: usage.cachedContentTokenCount ?? 0,
});

const gemini = {
  async json(request) {
    const answer = await geminiClient(request).models.generateContent({ model: request.model, contents: request.text });
    return { text: answer.text, usage: geminiUsage(answer.usageMetadata) };
  },
  async stream(request) {
    const stream = await geminiClient(request).models.generateContentStream({
      model: request.model, contents: request.text,
    });
    let text = "", usage = null;
    for await (const chunk of stream) {
      text += chunk.text ?? "";
      usage = chunk.usageMetadata ?? usage;
    }
    return { text, usage: geminiUsage(usage) };
  },
  async tools(request) {
    const answer = await geminiClient(request).models.generateContent({
      model: request.model, contents: request.text,
      config: { tools: [{ functionDeclarations: [{ name: "look_up", parametersJsonSchema: PARAMETERS }] }] },
    });
    return {
      tools: answer.functionCalls.map((call) => ({ name: call.name, arguments: call.args })),
      usage: geminiUsage(answer.usageMetadata),
    };
  },
  async models(request) {
    const models = [];
    for await (const model of await geminiClient(request).models.list()) models.push(model.name);
    return { models };
  },
};

// Vercel's `ai`; `provider` makes the model of one of its providers.
const vercelUsage = (usage) => ({
  input: usage.inputTokens, output: usage.outputTokens, cached: usage.inputTokenDetails.cacheReadTokens ?? 0,
});
const vercel = (provider) => ({
  async json(request) {
    const answer = await generateText({
      model: provider(request), prompt: request.text, maxRetries: request.retries, maxOutputTokens: 500,
    });
    return { text: answer.text, usage: vercelUsage(answer.usage) };
  },
  async stream(request) {
    let failure = null;
    const answer = streamText({
      model: provider(request), prompt: request.text, maxRetries: request.retries, maxOutputTokens: 500,
      onError: ({ error }) => { failure = error; },
    });
    let text = "";
    for await (const delta of answer.textStream) text += delta;
    if (failure) throw failure;
    return { text, usage: vercelUsage(await answer.usage) };
  },
  async tools(request) {
    const answer = await generateText({
      model: provider(request), prompt: request.text, maxRetries: request.retries, maxOutputTokens: 500,
      tools: { look_up: tool({ inputSchema: jsonSchema(PARAMETERS) }) },
    });
    return {
      tools: answer.toolCalls.map((call) => ({ name: call.toolName, arguments: call.input })),
      usage: vercelUsage(answer.usage),
    };
  },
});

const clients = {
  "openai-chat": openaiChat,
  "openai-responses": openaiResponses,
  anthropic,
  gemini,
  "ai-openai": vercel(({ base, key, model }) => createOpenAI({ baseURL: `${base}/v1`, apiKey: key })(model)),
  "ai-openai-chat": vercel(({ base, key, model }) => createOpenAI({ baseURL: `${base}/v1`, apiKey: key }).chat(model)),
  "ai-anthropic": vercel(({ base, key, model }) => createAnthropic({ baseURL: `${base}/v1`, apiKey: key })(model)),
};

// What went wrong, as a program that catches it would see it. `ai` wraps the last error of its retries.
function shown(error) {
  const inner = error.lastError ?? error;
  return {
    name: inner.constructor.name, status: inner.status ?? inner.statusCode ?? null,
    code: inner.code ?? inner.data?.error?.code ?? inner.error?.error?.type ?? null, message: String(inner.message),
  };
}

for await (const line of createInterface({ input: process.stdin })) {
  const request = JSON.parse(line);
  let outcome;
  try {
    outcome = await clients[request.client][request.step](request);
  } catch (error) {
    outcome = { error: shown(error) };
  }
  process.stdout.write(`${JSON.stringify(outcome)}\n`);
}
