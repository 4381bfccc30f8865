import { startKernel } from "#wireguard/external/kernel-backend.ts";
import { WgControl } from "#wireguard/external/wg-control.ts";
import { describeDeviceControl } from "../interop/device-control-suite.ts";

describeDeviceControl("the program wg, on interfaces of the kernel", {
  start: startKernel,
  create: (interfaceName) => new WgControl(interfaceName),
});
