// One call of openai's client: node call.mjs '{"url": …, "key": …, "body": …, "modules": folder}'
import { createRequire } from "node:module";

const asked = JSON.parse(process.argv[2]);
const { OpenAI } = createRequire(asked.modules + "/package.json")("openai");
const client = new OpenAI({ baseURL: asked.url, apiKey: asked.key, maxRetries: 0 });
try {
  const answer = await client.embeddings.create(asked.body);
  console.log(JSON.stringify(answer));
} catch (error) {
  const { constructor, status, code } = error;
  console.log(JSON.stringify({ error: { name: constructor.name, status, code } }));
}
