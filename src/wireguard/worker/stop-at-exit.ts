/** Main's handle on a thread that blocks in a system call. */
export interface BlockingThread {
  /** Makes the thread leave its loop without waiting for it. */
  requestStop(): void;
}

const running = new Set<BlockingThread>();
process.on("exit", () => {
  // Ending a thread waits for it, and a thread in poll(-1) never ends by itself (docs/packet-path.md).
  for (const thread of running) thread.requestStop();
});

/** Stops the thread when the process exits, which would wait for it. The returned function is to be called when it is over. */
export function stopAtExit(thread: BlockingThread): () => void {
  running.add(thread);
  return () => void running.delete(thread);
}
