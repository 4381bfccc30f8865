import { ExternalDeviceError, type ExternalErrorCode } from "./external-error.ts";
import { startKernel } from "./kernel-backend.ts";
import type { Backend } from "./parts.ts";
import { startWireguardGo, type WireguardGoDeps } from "./wireguard-go-backend.ts";

/** `auto`: the kernel's WireGuard where it works, else none: the embedded device is the better choice then. */
export type BackendChoice = "kernel" | "wireguard-go" | "auto";

/** With these the kernel's WireGuard cannot be had here, and nobody has asked for it by name. */
const NOT_HERE: ReadonlySet<ExternalErrorCode> = new Set(["kernel-unsupported", "program-missing", "not-permitted"]);

/** Undefined: `auto` found no kernel that can. Throws as `startKernel` and `startWireguardGo`. */
export async function chooseBackend(
  choice: BackendChoice,
  options: { readonly interfaceName: string },
  deps: WireguardGoDeps = {},
): Promise<Backend | undefined> {
  if (choice === "wireguard-go") return startWireguardGo(options, deps);
  try {
    return await startKernel(options, deps);
  } catch (error) {
    const isNotHere = error instanceof ExternalDeviceError && NOT_HERE.has(error.code);
    if (choice === "kernel" || !isNotHere) throw error;
    deps.log?.info("the kernel's WireGuard cannot be used", { reason: error.message });
    return undefined;
  }
}
