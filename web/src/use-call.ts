import { ConnectError } from "@connectrpc/connect";
import { useCallback, useState } from "react";

/** A call under way, or what the last one failed with, in words. */
export interface CallState {
  readonly busy: string | undefined;
  readonly failure: string | undefined;
}

/** Runs one named call at a time; what it changes comes back by the stream. */
export function useCall(): CallState & { readonly run: (name: string, call: () => Promise<unknown>) => void } {
  const [state, setState] = useState<CallState>({ busy: undefined, failure: undefined });
  const run = useCallback((name: string, call: () => Promise<unknown>): void => {
    setState({ busy: name, failure: undefined });
    call().then(
      () => setState({ busy: undefined, failure: undefined }),
      (reason: unknown) => setState({ busy: undefined, failure: ConnectError.from(reason).rawMessage }),
    );
  }, []);
  return { ...state, run };
}
