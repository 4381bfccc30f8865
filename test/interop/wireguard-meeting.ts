import { Judge, type JudgeProgram, Lab, OurDevice } from "./wireguard-lab.ts";

export const PSK = Buffer.alloc(32, 0x5a).toString("base64");
export const HERE4 = "10.99.0.1";
export const THERE4 = "10.99.0.2";
export const HERE6 = "fd99::1";
export const THERE6 = "fd99::2";
const HERE = [`${HERE4}/24`, `${HERE6}/64`];
const THERE = [`${THERE4}/24`, `${THERE6}/64`];
export const OUTSIDE4 = "10.77.0.2:51821";
export const OUTSIDE6 = "[fd77::2]:51821";

/** Two hosts and a pair of tunnel ends that know each other: our device and a judge, by default Debian's wireguard-go. */
export async function connect(options: {
  readonly judge?: JudgeProgram;
  readonly mode?: "asleep" | "awake";
  readonly path?: string;
  readonly presharedKey?: string | undefined;
  /** Default: the same. */
  readonly theirPresharedKey?: string | undefined;
  readonly theyKnowUs?: string;
  readonly setup?: Parameters<typeof OurDevice.start>[2];
}) {
  const { presharedKey } = options;
  await using undo = new AsyncDisposableStack();
  const lab = undo.use(await Lab.create());
  const theirs = await Judge.start(lab, THERE, 51821, options.judge);
  const ours = await OurDevice.start(lab, HERE, options.setup);
  undo.defer(() => ours.close());
  await theirs.setPeer(ours.publicKey, {
    allowedIps: [`${HERE4}/32`, `${HERE6}/128`],
    presharedKey: "theirPresharedKey" in options ? options.theirPresharedKey : presharedKey,
    ...(options.theyKnowUs === undefined ? {} : { endpoint: options.theyKnowUs }),
  });
  const setPeer = (mode: "asleep" | "awake"): Promise<unknown> =>
    ours.request({
      op: "setPeer",
      key: theirs.publicKey,
      mode,
      allowedIps: [`${THERE4}/32`, `${THERE6}/128`],
      presharedKey,
    });
  const setPath = (path: string): Promise<unknown> => ours.request({ op: "setPath", key: theirs.publicKey, path });
  await setPeer(options.mode ?? "awake");
  if (options.path) await setPath(options.path);
  const stack = undo.move();
  return { lab, ours, theirs, setPeer, setPath, [Symbol.asyncDispose]: () => stack.disposeAsync() };
}
