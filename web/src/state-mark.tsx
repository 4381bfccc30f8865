import type { StateName } from "./peer-row.ts";

/** A shape for each state beside its name: full, half and empty. Colour only repeats it. */
export function StateMark({ state }: { readonly state: StateName }) {
  return (
    <svg className={`mark ${state.toLowerCase()}`} width="12" height="12" viewBox="0 0 12 12" aria-hidden="true">
      <circle cx="6" cy="6" r="4.5" fill="none" stroke="currentColor" strokeWidth="1.6" />
      {state === "Connected" && <circle cx="6" cy="6" r="4.5" fill="currentColor" />}
      {state === "Connecting" && <path d="M6 1.5a4.500 4.500 0 0 1 0 9z" fill="currentColor" />}
    </svg>
  );
}
