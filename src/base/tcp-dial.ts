import { connect, type Socket } from "node:net";
import type { Clock, Millis, Timer } from "./time.ts";

/** While nothing answers, another attempt begins after this time; the system's own repetitions are 1, 2, 4, 8 s apart. */
export const REDIAL_INTERVAL: Millis = 1500;
/** Attempts under way at once; the oldest gives way. */
export const DIALS_MAX = 4;

export interface TcpDialEvents {
  /** Once, with TCP_NODELAY set; the socket is the callee's. */
  connected(socket: Socket): void;
  /** Once: an attempt was refused or cannot be made, which ends the others. Silence is no failure: the caller limits it. */
  failed(error: Error): void;
}

/**
 * Dials until somebody answers, so that a server or a link that comes back is met within REDIAL_INTERVAL and not when the
 * system repeats its SYN. The first connection wins. Returns what gives up without an event; idempotent.
 * `open` begins one attempt; for tests.
 */
export function dialTcp(
  clock: Clock,
  target: { readonly host: string; readonly port: number },
  events: TcpDialEvents,
  open: () => Socket = () => connect({ ...target, noDelay: true }),
): () => void {
  const attempts = new Set<Socket>();
  let timer: Timer | undefined;
  let isOver = false;
  const end = (): void => {
    isOver = true;
    timer?.cancel();
    for (const attempt of attempts) attempt.destroy();
    attempts.clear();
  };
  const dial = (): void => {
    timer = clock.after(REDIAL_INTERVAL, dial);
    const [oldest] = attempts;
    if (oldest && attempts.size >= DIALS_MAX) {
      attempts.delete(oldest);
      oldest.destroy();
    }
    const socket = open();
    attempts.add(socket);
    const fail = (error: Error): void => {
      if (isOver || !attempts.delete(socket)) return;
      end();
      events.failed(error);
    };
    // Stays for ever: an attempt that is destroyed may still report an error.
    socket.on("error", fail);
    socket.once("connect", () => {
      if (isOver || !attempts.delete(socket)) return;
      end();
      events.connected(socket);
    });
  };
  dial();
  return end;
}
