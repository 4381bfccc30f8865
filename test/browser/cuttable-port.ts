import { connect, createServer, type Socket } from "node:net";

/** A port that passes bytes on to another one, until it is cut. */
export interface CuttablePort extends AsyncDisposable {
  readonly port: number;
  /** Bytes that came from the other port. */
  received(): number;
  /** Ends all connections and refuses new ones. */
  cut(): void;
  mend(): void;
}

export async function startCuttablePort(target: number): Promise<CuttablePort> {
  const sockets = new Set<Socket>();
  let isCut = false;
  let received = 0;
  const server = createServer((near) => {
    if (isCut) return void near.destroy();
    const far = connect(target, "127.0.0.1");
    for (const [socket, other] of [
      [near, far],
      [far, near],
    ] as const) {
      sockets.add(socket);
      socket.on("error", () => {});
      socket.once("close", () => {
        sockets.delete(socket);
        other.destroy();
      });
    }
    near.pipe(far);
    far.on("data", (data) => {
      received += data.length;
    });
    far.pipe(near);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const cut = (): void => {
    isCut = true;
    for (const socket of [...sockets]) socket.destroy();
  };
  return {
    port: (server.address() as { readonly port: number }).port,
    received: () => received,
    cut,
    mend() {
      isCut = false;
    },
    async [Symbol.asyncDispose]() {
      cut();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}
