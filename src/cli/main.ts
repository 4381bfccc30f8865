import { enableCompileCache } from "node:module";
import { fileURLToPath } from "node:url";

// Compiled code is kept beside the checkout's packages, never in a shared temporary directory: whoever could write there
// could run code as root. Where that is not writable, Node goes without.
enableCompileCache(fileURLToPath(new URL("../../node_modules/.cache/perch", import.meta.url)));

const { run } = await import("./program.ts");
process.exitCode = await run(process.argv.slice(2));
