import type { StatusHead } from "../../src/gen/daemon_pb.ts";
import { formatDayAndTime, formatDuration } from "./format.ts";
import { Fact } from "./peer-drawer.tsx";
import type { DaemonClient } from "./session.ts";
import { useCall } from "./use-call.ts";

/** Who decided, as a person says it; DESIGN.md, section 1.7. */
const SOURCES: Readonly<Record<string, string>> = {
  flag: "a flag of perch up",
  environment: "the environment",
  setting: "your setting",
  network: "the network",
  default: "default",
};

const TITLES: Readonly<Record<string, string>> = {
  "management-url": "Management server",
  hostname: "Host name",
  "interface-name": "Interface",
  "wireguard-port": "WireGuard port",
  mtu: "MTU",
  device: "Device",
  "preshared-key": "Pre-shared key",
  "enable-lazy-connection": "Lazy connections",
  "inactivity-threshold": "Sleep after",
  "force-relay": "Always relayed",
};

export function SettingsView({
  head,
  client,
}: {
  readonly head: StatusHead | undefined;
  readonly client: DaemonClient;
}) {
  if (!head) return null;
  return (
    <div className="cards">
      <LazySwitch head={head} client={client} />
      <section className="card wide">
        <h3>Settings in force</h3>
        <table className="settings">
          <thead>
            <tr>
              <th scope="col">Setting</th>
              <th scope="col">Value</th>
              <th scope="col">Decided by</th>
            </tr>
          </thead>
          <tbody>
            {head.settings.map(({ name, value, source }) => (
              <tr key={name} data-setting={name}>
                <th scope="row">
                  {TITLES[name] ?? name} <code className="dim">--{name}</code>
                </th>
                <td>{value}</td>
                <td>{SOURCES[source] ?? source}</td>
              </tr>
            ))}
          </tbody>
        </table>
        <p className="dim">
          Others than lazy connections change with <code>perch up</code>, which reconnects.
        </p>
      </section>
      <section className="card">
        <h3>Servers</h3>
        <ul className="servers">
          {head.management && <Server name="Management" uri={head.management.url} {...pick(head.management)} />}
          {head.signal && <Server name="Signal" uri={head.signal.url} {...pick(head.signal)} />}
          {head.relays.map((relay) => (
            <Server key={relay.uri} name="Relay" uri={relay.uri} isUp={relay.available} error={relay.error} />
          ))}
          {head.stuns.map((stun) => (
            <Server key={stun.uri} name="STUN" uri={stun.uri} isUp={stun.available} error={stun.error} />
          ))}
        </ul>
      </section>
      <section className="card">
        <h3>This agent</h3>
        <dl>
          <Fact name="Name">{head.fqdn}</Fact>
          <Fact name="Address">{[head.address, head.address6].filter(Boolean).join(", ")}</Fact>
          <Fact name="Interface">{head.interfaceName}</Fact>
          <Fact name="Device">{head.device}</Fact>
          <Fact name="Version">{head.daemonVersion}</Fact>
          <Fact name="Started">{formatDayAndTime(head.startedAt)}</Fact>
          <Fact name="Process">{`${head.pid}`}</Fact>
          <Fact name="Log level">{head.logLevel}</Fact>
        </dl>
      </section>
    </div>
  );
}

function LazySwitch({ head, client }: { readonly head: StatusHead; readonly client: DaemonClient }) {
  const { busy, failure, run } = useCall();
  const { enabled = false, source = "default", thresholdMs = 0 } = head.lazy ?? {};
  const isFixed = source === "environment";
  const set = (choice: boolean | undefined): void =>
    run("lazy", () => client.setLazy(choice === undefined ? {} : { enabled: choice }));
  return (
    <section className="card wide lazy">
      <div>
        <h3 id="lazy-title">Lazy connections</h3>
        <p id="lazy-words">
          {enabled
            ? `Peers sleep until they are needed, and again after ${formatDuration(thresholdMs)} without traffic.`
            : "Every peer stays connected."}
        </p>
        <p className="dim">
          Decided by {SOURCES[source] ?? source}.{isFixed && " It counts before what is chosen here."}
          {source === "setting" && (
            <button type="button" className="link" disabled={busy !== undefined} onClick={() => set(undefined)}>
              Let the network decide
            </button>
          )}
        </p>
        {failure !== undefined && (
          <p className="failure" role="alert">
            {failure}
          </p>
        )}
      </div>
      <button
        type="button"
        role="switch"
        className="switch"
        aria-checked={enabled}
        aria-labelledby="lazy-title"
        aria-describedby="lazy-words"
        disabled={busy !== undefined || isFixed}
        onClick={() => set(!enabled)}
      >
        <span className="knob" />
        <span className="words">{enabled ? "On" : "Off"}</span>
      </button>
    </section>
  );
}

function pick({ connected, error }: { readonly connected: boolean; readonly error: string }) {
  return { isUp: connected, error };
}

interface ServerProps {
  readonly name: string;
  readonly uri: string;
  readonly isUp: boolean;
  readonly error: string;
}

function Server({ name, uri, isUp, error }: ServerProps) {
  return (
    <li>
      <span className={isUp ? "up" : "not-up"}>{isUp ? "Up" : "Not reached"}</span>
      <span>
        {name} <code className="dim">{uri}</code>
        {!isUp && error && <span className="failure"> {error}</span>}
      </span>
    </li>
  );
}
