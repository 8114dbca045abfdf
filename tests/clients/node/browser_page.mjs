// Runs in a page: the SDKs as a page uses them. `browser.mjs` calls window.run.

import Anthropic from "@anthropic-ai/sdk";
import { GoogleGenAI } from "@google/genai";
import OpenAI from "openai";

const messages = (text) => [{ role: "user", content: text }];
const openai = ({ base, key }) =>
  new OpenAI({ baseURL: `${base}/v1`, apiKey: key, maxRetries: 0, dangerouslyAllowBrowser: true });

const clients = {
  async chat(request) {
    const stream = await openai(request).chat.completions.create({
      model: request.model, messages: messages(request.text), stream: true, stream_options: { include_usage: true },
    });
    let text = "", pieces = 0, usage = null;
    for await (const chunk of stream) {
      pieces += 1;
      text += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
    }
    return { text, pieces, output: usage.completion_tokens };
  },
  async responses(request) {
    const stream = await openai(request).responses.create({ model: request.model, input: request.text, stream: true });
    let text = "", pieces = 0, output = null;
    for await (const event of stream) {
      pieces += 1;
      if (event.type === "response.output_text.delta") text += event.delta;
      if (event.type === "response.completed") output = event.response.usage.output_tokens;
    }
    return { text, pieces, output };
  },
  async headers(request) {
    const { response, request_id } = await openai(request).chat.completions
      .create({ model: request.model, messages: messages(request.text) }).withResponse();
    return { id: response.headers.get("x-relay-request-id"), request_id, names: [...response.headers.keys()] };
  },
  async models(request) {
    const models = [];
    for await (const model of openai(request).models.list()) models.push(model.id);
    return { models };
  },
  async messages(request) {
    const client = new Anthropic({
      baseURL: request.base, apiKey: request.key, maxRetries: 0, dangerouslyAllowBrowser: true,
    });
    let pieces = 0;
    const stream = client.messages.stream({
      model: request.model, max_tokens: 200, messages: messages(request.text),
    }).on("streamEvent", () => { pieces += 1; });
    const message = await stream.finalMessage();
    return { text: message.content[0].text, pieces, output: message.usage.output_tokens };
  },
  async google(request) {
    const client = new GoogleGenAI({ apiKey: request.key, httpOptions: { baseUrl: request.base } });
    let text = "", pieces = 0, output = null;
    for await (const chunk of await client.models.generateContentStream({
      model: request.model, contents: request.text,
    })) {
      pieces += 1;
      text += chunk.text ?? "";
      output = chunk.usageMetadata?.candidatesTokenCount ?? output;
    }
    return { text, pieces, output };
  },
};

window.run = async (request) => {
  try {
    return await clients[request.client](request);
  } catch (error) {
    return { error: { name: error.constructor.name, status: error.status ?? null, message: error.message } };
  }
};
