import { useVirtualizer } from "@tanstack/react-virtual";
import { type KeyboardEvent, memo, useEffect, useMemo, useRef, useState } from "react";
import { formatAge, formatBytes, formatCount, formatMillis } from "./format.ts";
import { type Column, type PeerRow, type Sorting, STATES, type StateName, selectRows, sortRows } from "./peer-row.ts";
import { StateMark } from "./state-mark.tsx";
import { useMedia, useNow } from "./use-browser.ts";

const COLUMNS: readonly { readonly column: Column; readonly title: string }[] = [
  { column: "name", title: "Name" },
  { column: "state", title: "State" },
  { column: "address", title: "Address" },
  { column: "path", title: "Path" },
  { column: "latency", title: "Latency" },
  { column: "traffic", title: "Received / sent" },
  { column: "since", title: "Since" },
];

const ROW_PX = 40;
const TITLES_PX = 34;
/** Two lines. */
const NARROW_ROW_PX = 58;
/** Rows kept ready beyond each edge of what is visible. */
const OVERSCAN = 8;

interface Props {
  readonly rows: ReadonlyMap<string, PeerRow>;
  readonly isLive: boolean;
  readonly openKey: string | undefined;
  readonly open: (key: string | undefined) => void;
}

export function PeersView({ rows, isLive, openKey, open }: Props) {
  const [search, setSearch] = useState("");
  const [states, setStates] = useState<ReadonlySet<StateName>>(new Set());
  const [sorting, setSorting] = useState<Sorting>({ column: "name", descending: false });
  // Nearly in order already, which costs a sort a tenth of what it costs from the beginning.
  const ordered = useRef<readonly PeerRow[]>([]);
  const sorted = useMemo(() => {
    ordered.current = sortRows(inEarlierOrder(rows, ordered.current), sorting);
    return ordered.current;
  }, [rows, sorting]);
  const shown = useMemo(() => selectRows(sorted, search, states), [sorted, search, states]);
  const counts = useMemo(() => countStates(rows.values()), [rows]);
  const searchBox = useRef<HTMLInputElement>(null);

  useEffect(() => {
    const focusSearch = (event: globalThis.KeyboardEvent): void => {
      if (event.key !== "/" || event.target instanceof HTMLInputElement) return;
      event.preventDefault();
      searchBox.current?.focus();
    };
    addEventListener("keydown", focusSearch);
    return () => removeEventListener("keydown", focusSearch);
  }, []);

  const toggle = (state: StateName): void => {
    const next = new Set(states);
    if (!next.delete(state)) next.add(state);
    setStates(next);
  };

  return (
    <>
      <div className="toolbar">
        <input
          ref={searchBox}
          type="search"
          value={search}
          placeholder="Name, address, route or key"
          aria-label="Search peers"
          aria-keyshortcuts="/"
          onChange={(event) => setSearch(event.target.value)}
        />
        <fieldset className="chips" aria-label="Show only peers that are">
          {STATES.map((state) => (
            <button key={state} type="button" aria-pressed={states.has(state)} onClick={() => toggle(state)}>
              <StateMark state={state} /> {state} <span className="count">{formatCount(counts[state])}</span>
            </button>
          ))}
        </fieldset>
        <output className="dim total">
          {shown.length === rows.size
            ? `${formatCount(rows.size)} peers`
            : `${formatCount(shown.length)} of ${formatCount(rows.size)} peers`}
        </output>
      </div>
      <PeerGrid shown={shown} sorting={sorting} sort={setSorting} openKey={openKey} open={open} />
      {isLive && shown.length === 0 && (
        <p className="empty">{rows.size === 0 ? "No peers in the network map." : "No peer fits the search."}</p>
      )}
    </>
  );
}

interface GridProps extends Pick<Props, "openKey" | "open"> {
  readonly shown: readonly PeerRow[];
  readonly sorting: Sorting;
  readonly sort: (sorting: Sorting) => void;
}

/** Only rows in sight are in the document. The grid has the focus; the arrows move the active row. */
function PeerGrid({ shown, sorting, sort, openKey, open }: GridProps) {
  const isNarrow = useMedia("(max-width: 700px)");
  const now = useNow(1000);
  const grid = useRef<HTMLDivElement>(null);
  const scroller = useRef<HTMLDivElement>(null);
  const [activeKey, setActiveKey] = useState<string>();
  const rowPx = isNarrow ? NARROW_ROW_PX : ROW_PX;
  const titlesPx = isNarrow ? 0 : TITLES_PX;
  const virtual = useVirtualizer({
    count: shown.length,
    getScrollElement: () => scroller.current,
    estimateSize: () => rowPx,
    overscan: OVERSCAN,
    // The titles stay above the rows, in the same box, so that columns are as wide whatever the scroll bar takes.
    scrollMargin: titlesPx,
    scrollPaddingStart: titlesPx,
  });
  useEffect(() => {
    if (rowPx > 0) virtual.measure();
  }, [rowPx, virtual]);
  // The drawer closes: back to where the keyboard was.
  const wasOpen = useRef(false);
  useEffect(() => {
    if (wasOpen.current && openKey === undefined) grid.current?.focus({ preventScroll: true });
    wasOpen.current = openKey !== undefined;
  }, [openKey]);

  const active = activeKey === undefined ? -1 : shown.findIndex(({ key }) => key === activeKey);

  const move = (to: number): void => {
    const index = Math.min(shown.length - 1, Math.max(0, to));
    const row = shown[index];
    if (!row) return;
    setActiveKey(row.key);
    if (openKey !== undefined) open(row.key);
    virtual.scrollToIndex(index);
  };

  const onKeyDown = (event: KeyboardEvent): void => {
    // The titles are buttons with keys of their own.
    if (event.target instanceof HTMLButtonElement) return;
    const page = Math.max(1, Math.floor((scroller.current?.clientHeight ?? 0) / rowPx) - 2);
    const targets: Readonly<Record<string, number>> = {
      ArrowDown: active + 1,
      ArrowUp: active - 1,
      PageDown: active + page,
      PageUp: active - page,
      Home: 0,
      End: shown.length - 1,
    };
    const to = targets[event.key];
    if (to !== undefined && !event.altKey && !event.ctrlKey && !event.metaKey) move(to);
    else if (event.key === "Enter" && active >= 0) open(shown[active]!.key);
    else if (event.key === "Escape" && openKey !== undefined) open(undefined);
    else return;
    event.preventDefault();
  };

  const activeRow = active >= 0 ? shown[active] : undefined;
  return (
    // biome-ignore lint/a11y/useSemanticElements: a table element cannot hold rows that are placed by script
    <div
      ref={grid}
      className="grid"
      role="grid"
      tabIndex={0}
      aria-label="Peers; arrows move, Enter opens"
      aria-activedescendant={activeRow ? rowId(activeRow.key) : undefined}
      onKeyDown={onKeyDown}
      aria-rowcount={shown.length + 1}
      aria-colcount={COLUMNS.length}
    >
      {/* biome-ignore lint/a11y/noStaticElementInteractions: it only hands the focus on */}
      <div
        ref={scroller}
        className="scroller"
        role="presentation"
        // A click gives the focus to the grid, which has the keyboard.
        tabIndex={-1}
        onFocus={({ target, currentTarget }) =>
          target === currentTarget && grid.current?.focus({ preventScroll: true })
        }
      >
        {/* biome-ignore lint/a11y/useSemanticElements: see above */}
        {/* biome-ignore lint/a11y/useFocusableInteractive: its cells have the focus */}
        <div className="row titles" role="row" aria-rowindex={1}>
          {COLUMNS.map(({ column, title }) => {
            const isSorted = sorting.column === column;
            const direction = sorting.descending ? "descending" : "ascending";
            return (
              // biome-ignore lint/a11y/useSemanticElements: see above
              // biome-ignore lint/a11y/useFocusableInteractive: the button in it has the focus
              <div
                key={column}
                role="columnheader"
                className={`cell ${column}`}
                aria-sort={isSorted ? direction : "none"}
              >
                <button type="button" onClick={() => sort({ column, descending: isSorted && !sorting.descending })}>
                  {title}
                  <span className="arrow" aria-hidden="true">
                    {isSorted ? (sorting.descending ? "↓" : "↑") : ""}
                  </span>
                </button>
              </div>
            );
          })}
        </div>
        {/* biome-ignore lint/a11y/useSemanticElements: see above */}
        <div className="space" role="rowgroup" style={{ height: virtual.getTotalSize() }}>
          {virtual.getVirtualItems().map(({ index, start }) => {
            const row = shown[index];
            return row ? (
              <GridRow
                key={row.key}
                row={row}
                index={index}
                top={start - titlesPx}
                age={row.peer.since > 0 ? formatAge(row.peer.since, now) : ""}
                isActive={index === active}
                isOpen={row.key === openKey}
                activate={setActiveKey}
                open={open}
              />
            ) : null;
          })}
        </div>
      </div>
    </div>
  );
}

interface RowProps {
  readonly row: PeerRow;
  readonly index: number;
  /** Pixels from the first row. */
  readonly top: number;
  readonly age: string;
  readonly isActive: boolean;
  readonly isOpen: boolean;
  readonly activate: (key: string) => void;
  readonly open: (key: string) => void;
}

const GridRow = memo(function GridRow({ row, index, top, age, isActive, isOpen, activate, open }: RowProps) {
  const { peer, state } = row;
  const traffic = peer.rxBytes + peer.txBytes;
  return (
    // biome-ignore lint/a11y/useSemanticElements: see PeerGrid
    // biome-ignore lint/a11y/useKeyWithClickEvents: the scroller around it has the keyboard
    // biome-ignore lint/a11y/useFocusableInteractive: the scroller around it has the focus
    <div
      id={rowId(row.key)}
      role="row"
      className={`row${isActive ? " active" : ""}${isOpen ? " open" : ""}`}
      aria-rowindex={index + 2}
      aria-selected={isActive}
      data-peer={row.name}
      data-state={state}
      style={{ transform: `translateY(${top}px)` }}
      onClick={() => {
        activate(row.key);
        open(row.key);
      }}
    >
      <Cell column="name" title={peer.fqdn}>
        <span className="host">{row.name || row.key.slice(0, 12)}</span>
        <span className="dim domain">{row.domain}</span>
        {peer.pinned && <span className="tag">pinned</span>}
      </Cell>
      <Cell column="state" title={peer.reason}>
        <StateMark state={state} /> {state}
      </Cell>
      <Cell column="address">{peer.addresses[0]}</Cell>
      <Cell column="path">{row.path}</Cell>
      <Cell column="latency">{peer.latencyMs === undefined ? "" : formatMillis(peer.latencyMs)}</Cell>
      <Cell column="traffic">{traffic > 0 && `${formatBytes(peer.rxBytes)} / ${formatBytes(peer.txBytes)}`}</Cell>
      <Cell column="since">{age}</Cell>
    </div>
  );
});

function Cell({ column, title, children }: { column: Column; title?: string; children: React.ReactNode }) {
  return (
    // biome-ignore lint/a11y/useSemanticElements: see PeerGrid
    // biome-ignore lint/a11y/useFocusableInteractive: the scroller around it has the focus
    <div role="gridcell" className={`cell ${column}`} title={title}>
      {children}
    </div>
  );
}

function rowId(key: string): string {
  return `peer-${key}`;
}

/** The rows of today in the order of those of before; new ones last. */
function inEarlierOrder(rows: ReadonlyMap<string, PeerRow>, before: readonly PeerRow[]): PeerRow[] {
  const left = new Map(rows);
  const found: PeerRow[] = [];
  for (const { key } of before) {
    const row = left.get(key);
    if (row && left.delete(key)) found.push(row);
  }
  for (const row of left.values()) found.push(row);
  return found;
}

function countStates(rows: Iterable<PeerRow>): Record<StateName, number> {
  const counts = { Idle: 0, Connecting: 0, Connected: 0 };
  for (const { state } of rows) counts[state]++;
  return counts;
}
