// Drives a real browser: a request per line of standard input, its outcome on one line of standard output.
//
//   {step: "origin"}                                  {origin} of the page that runs the SDKs, and of the collector
//   {step: "sdk", client, base, key, model, text}     what window.run of browser_page.mjs gives
//   {step: "open", url, key, method, body, way}       {status, ran}: an address of the relay as a document, and
//                                                     whether a script in it ran, told by its request to the collector
//   {step: "embed", url, key, as}                     {ran}: the address in an iframe, script, object or embed of a page
//   {step: "worker", base, url, key}                  {registered, ran}: as the service worker of the relay's origin
//
// `way` of an opened address: "direct" is the browser's own request. "old" is what a browser shows that does not say what
// it asks for (no Sec-Fetch fields). "bare" is that without the relay's guards: the script has to run, or the test is blind.

import { createServer } from "node:http";
import { createInterface } from "node:readline";
import { build } from "esbuild";
import { chromium } from "playwright-core";

const SETTLE_MS = 700; // for a script that is going to run

const bundled = await build({
  entryPoints: [new URL("browser_page.mjs", import.meta.url).pathname],
  bundle: true, format: "iife", platform: "browser", keepNames: true, write: false,
  logLevel: "error",
});
const script = bundled.outputFiles[0].text;
let ran = 0;
let embedded = "";
const server = createServer((request, response) => {
  const path = request.url.split("?")[0];
  if (path === "/ran") ran += 1;
  const [type, body] = path === "/page.js" ? ["text/javascript", script]
    : path === "/embed" ? ["text/html", embedded]
    : path === "/worker.js" ? ["text/javascript", "self.addEventListener('install', () => {});"]
    : ["text/html", "<!doctype html><title>page</title><script src='/page.js'></script>"];
  response.writeHead(200, { "content-type": type, "access-control-allow-origin": "*" });
  response.end(body);
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const origin = `http://localhost:${server.address().port}`;

const browser = await chromium.launch({
  executablePath: process.argv[2],
  headless: true,
  args: [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    // Answers that we put in a request's place are from nowhere: their scripts could not reach the collector.
    "--disable-features=LocalNetworkAccessChecks,LocalNetworkAccessChecksWebSockets",
  ],
});

async function fresh(work) {
  const context = await browser.newContext();
  const page = await context.newPage();
  ran = 0;
  try {
    return await work(page, context);
  } finally {
    await context.close();
  }
}

const settle = (page) => page.waitForTimeout(SETTLE_MS);

// The relay's answer to the browser's next request for `url`, got without what a browser adds.
async function answerFor(page, request) {
  await page.route(request.url, async (route) => {
    const answer = await route.fetch({
      url: request.url, method: request.method ?? "GET", postData: request.body, maxRedirects: 0,
      headers: { authorization: `Bearer ${request.key}`, "content-type": "application/json" },
    });
    const headers = answer.headers();
    if (request.way === "bare") {
      delete headers["content-security-policy"];
      delete headers["x-content-type-options"];
    }
    await route.fulfill({ response: answer, headers });
  });
}

const steps = {
  async origin() {
    return { origin };
  },
  sdk: (request) => fresh(async (page) => {
    await page.goto(origin);
    return page.evaluate((each) => window.run(each), request);
  }),
  open: (request) => fresh(async (page) => {
    if (request.way === "direct") {
      await page.setExtraHTTPHeaders({ authorization: `Bearer ${request.key}` });
    } else {
      await answerFor(page, request);
    }
    let answer = null;
    try {
      answer = await page.goto(request.url);
    } catch (error) {
      if (!error.message.includes("Download is starting")) throw error;
    }
    await settle(page);
    return { status: answer && answer.status(), ran };
  }),
  embed: (request) => fresh(async (page) => {
    await page.setExtraHTTPHeaders({ authorization: `Bearer ${request.key}` });
    const name = request.as === "object" ? "data" : "src";
    embedded = `<!doctype html><${request.as} ${name}="${request.url}"></${request.as}>`;
    await page.goto(`${origin}/embed`);
    await settle(page);
    return { ran };
  }),
  worker: (request) => fresh(async (page, context) => {
    await context.setExtraHTTPHeaders({ authorization: `Bearer ${request.key}` });
    await page.goto(request.base);
    const registered = await page.evaluate(async (url) => {
      try {
        await navigator.serviceWorker.register(url);
        return true;
      } catch {
        return false;
      }
    }, request.url);
    await settle(page);
    return { registered, ran };
  }),
};

for await (const line of createInterface({ input: process.stdin })) {
  const request = JSON.parse(line);
  let outcome;
  try {
    outcome = await steps[request.step](request);
  } catch (error) {
    outcome = { failed: error.message };
  }
  process.stdout.write(`${JSON.stringify(outcome)}\n`);
}
await browser.close();
server.close();
