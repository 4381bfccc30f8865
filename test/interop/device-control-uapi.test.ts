import { UapiControl, uapiPath } from "#wireguard/external/uapi-control.ts";
import { describeDeviceControl } from "./device-control-suite.ts";

describeDeviceControl("the control socket of wireguard-go", {
  create: (interfaceName) => new UapiControl(uapiPath(interfaceName)),
});
