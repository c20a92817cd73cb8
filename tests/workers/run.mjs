// Runs one Worker in workerd until its own input ends. Miniflare's settings for the Worker are the first argument.
//
// It speaks JSON, one line each. First `{ready: url}`, then `{level, message}` for each line that the Worker logs.
// `{id, method, arguments}` calls `scheduled` or `queue` of the Worker; `{id, value}` or `{id, error}` is the outcome.

import readline from "node:readline";
import { Miniflare } from "miniflare";

const say = (line) => {
  process.stdout.write(`${JSON.stringify(line)}\n`);
};

const miniflare = new Miniflare({
  modules: true,
  modulesRules: [
    { type: "ESModule", include: ["**/*.js"] },
    { type: "CompiledWasm", include: ["**/*.wasm"] },
  ],
  modulesRoot: ".",
  scriptPath: "index.js",
  cf: false,
  host: "127.0.0.1",
  port: 0,
  // Past Miniflare's own Worker, which would add its headers and its time.
  unsafeDirectSockets: [{ host: "127.0.0.1", port: 0 }],
  handleStructuredLogs: ({ level, message }) => say({ level, message }),
  ...JSON.parse(process.argv[2]),
});

await miniflare.ready;
const worker = await miniflare.getWorker();
say({ ready: await miniflare.unsafeGetDirectURL() });

for await (const line of readline.createInterface({ input: process.stdin })) {
  const { id, method, arguments: values } = JSON.parse(line);
  // Not awaited: a slow handler holds up no other.
  worker[method](...values).then(
    (value) => say({ id, value: { outcome: value.outcome, ackAll: value.ackAll } }),
    (error) => say({ id, error: String(error) }),
  );
}

await miniflare.dispose();
