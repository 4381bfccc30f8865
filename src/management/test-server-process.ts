/** For tests: a management server as a process of its own, to be killed. Arguments: database path, port. Prints its URL. */
import { TestServer } from "./test-server.ts";

const [path, port] = process.argv.slice(2);
const server = await TestServer.start({ path: path!, port: Number(port) });
const { key } = await server.server.createSetupKey({ reusable: true });
process.stdout.write(`${JSON.stringify({ url: server.url, port: server.port, key })}\n`);
