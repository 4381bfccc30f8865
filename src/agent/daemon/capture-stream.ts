import { create } from "@bufbuild/protobuf";
import { messageOf } from "#base/errors.ts";
import { type CapturePart, CapturePartSchema, type CaptureRequest } from "#gen/daemon_pb.ts";
import type { CaptureOptions, PacketCapture } from "#wireguard/capture.ts";
import { DaemonError } from "./daemon-error.ts";

/** The bounds that a request names; zero is none. */
export function parseCaptureBounds(request: CaptureRequest): CaptureOptions {
  const bound = (value: number): number | undefined => (value > 0 ? value : undefined);
  return {
    snapLength: bound(request.snapLength),
    maxPackets: bound(request.packets),
    maxBytes: bound(request.bytes),
    duration: bound(request.durationMs),
  };
}

/** The file in pieces, then what was captured. The capture ends with `signal`. Throws DaemonError `value-invalid`. */
export async function* captureParts(start: () => PacketCapture, signal: AbortSignal): AsyncGenerator<CapturePart> {
  const capture = startChecked(start);
  const stop = (): void => capture.stop();
  signal.addEventListener("abort", stop);
  try {
    if (signal.aborted) return;
    for await (const bytes of capture) {
      yield create(CapturePartSchema, { part: { case: "file", value: new Uint8Array(bytes) } });
    }
    const { packets, dropped, end = "stopped" } = capture.summary;
    yield create(CapturePartSchema, { part: { case: "summary", value: { packets, dropped, end } } });
  } finally {
    signal.removeEventListener("abort", stop);
    stop();
  }
}

function startChecked(start: () => PacketCapture): PacketCapture {
  try {
    return start();
  } catch (error) {
    if (error instanceof RangeError) throw new DaemonError("value-invalid", messageOf(error), { cause: error });
    throw error;
  }
}
