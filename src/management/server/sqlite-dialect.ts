import { DatabaseSync, type SQLInputValue, type StatementSync } from "node:sqlite";
import {
  type CompiledQuery,
  type DatabaseConnection,
  type DatabaseIntrospector,
  type Dialect,
  type DialectAdapter,
  type Driver,
  type Kysely,
  type QueryCompiler,
  type QueryResult,
  SqliteAdapter,
  SqliteIntrospector,
  SqliteQueryCompiler,
} from "kysely";

export interface SqliteOptions {
  /** A file, or `:memory:`. */
  readonly path: string;
}

/** How long a statement waits for a lock that another process holds, in milliseconds, and how often it looks. */
const BUSY_TIMEOUT_MS = 5_000;
const BUSY_RETRY_MS = 5;

/** SQLITE_BUSY (sqlite.org/rescode.html); extended codes have it in their low byte. */
const SQLITE_BUSY = 5;

/** Prepared statements kept; kysely makes the same text for the same query. */
const MAX_STATEMENTS = 256;

/**
 * Kysely on the SQLite that Node brings along. One connection: a mutex hands it to one query or transaction at a time, so
 * transactions of one process never interleave. Write-ahead log and a full sync at every commit: what was committed survives the
 * death of the process and of the machine.
 */
export class NodeSqliteDialect implements Dialect {
  readonly #options: SqliteOptions;

  constructor(options: SqliteOptions) {
    this.#options = options;
  }

  createDriver(): Driver {
    return new NodeSqliteDriver(this.#options);
  }

  createQueryCompiler(): QueryCompiler {
    return new SqliteQueryCompiler();
  }

  createAdapter(): DialectAdapter {
    return new NodeSqliteAdapter();
  }

  // biome-ignore lint/suspicious/noExplicitAny: kysely's own signature
  createIntrospector(db: Kysely<any>): DatabaseIntrospector {
    return new SqliteIntrospector(db);
  }
}

class NodeSqliteAdapter extends SqliteAdapter {
  /** So that a migration is one transaction: a process that dies in the middle leaves no half-made tables. */
  override get supportsTransactionalDdl(): boolean {
    return true;
  }
}

class NodeSqliteDriver implements Driver {
  readonly #options: SqliteOptions;
  #connection: NodeSqliteConnection | undefined;
  /** Resolves when the connection is free again; whoever takes it puts its own promise here. */
  #free: Promise<void> = Promise.resolve();
  #release: () => void = () => {};

  constructor(options: SqliteOptions) {
    this.#options = options;
  }

  async init(): Promise<void> {
    const database = new DatabaseSync(this.#options.path);
    try {
      for (const pragma of ["busy_timeout = 0", "journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"])
        await whenFree(() => database.exec(`PRAGMA ${pragma}`));
    } catch (error) {
      database.close();
      throw error;
    }
    this.#connection = new NodeSqliteConnection(database);
  }

  async acquireConnection(): Promise<DatabaseConnection> {
    const before = this.#free;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#free = promise;
    await before;
    this.#release = resolve;
    return this.#connection!;
  }

  async releaseConnection(): Promise<void> {
    this.#release();
  }

  /** Takes the write lock at once: a transaction that reads first and then writes must not find out too late. */
  async beginTransaction(): Promise<void> {
    await whenFree(() => this.#connection!.execute("begin immediate"));
  }

  async commitTransaction(): Promise<void> {
    this.#connection!.execute("commit");
  }

  async rollbackTransaction(): Promise<void> {
    this.#connection!.execute("rollback");
  }

  async destroy(): Promise<void> {
    this.#connection?.close();
    this.#connection = undefined;
  }
}

class NodeSqliteConnection implements DatabaseConnection {
  readonly #database: DatabaseSync;
  readonly #statements = new Map<string, StatementSync>();

  constructor(database: DatabaseSync) {
    this.#database = database;
  }

  async executeQuery<Row>({ sql, parameters }: CompiledQuery): Promise<QueryResult<Row>> {
    const statement = this.#prepare(sql);
    const values = parameters as readonly SQLInputValue[];
    return whenFree(() => {
      if (statement.columns().length > 0) return { rows: statement.all(...values) as Row[] };
      const { changes, lastInsertRowid } = statement.run(...values);
      return { rows: [], numAffectedRows: BigInt(changes), insertId: BigInt(lastInsertRowid) };
    });
  }

  // biome-ignore lint/correctness/useYield: rows come whole, nothing here is large enough to stream
  async *streamQuery<Row>(): AsyncIterableIterator<QueryResult<Row>> {
    throw new TypeError("streaming is not supported");
  }

  execute(sql: string): void {
    this.#database.exec(sql);
  }

  close(): void {
    this.#statements.clear();
    this.#database.close();
  }

  #prepare(sql: string): StatementSync {
    const known = this.#statements.get(sql);
    if (known) return known;
    if (this.#statements.size >= MAX_STATEMENTS) this.#statements.clear();
    const statement = this.#database.prepare(sql);
    this.#statements.set(sql, statement);
    return statement;
  }
}

/** Runs a statement, again and again while another process holds the lock. SQLite's own waiting would stop the event loop. */
async function whenFree<T>(run: () => T): Promise<T> {
  const end = performance.now() + BUSY_TIMEOUT_MS;
  for (;;) {
    try {
      return run();
    } catch (error) {
      const busy = error instanceof Error && "errcode" in error && (Number(error.errcode) & 0xff) === SQLITE_BUSY;
      if (!busy || performance.now() >= end) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, BUSY_RETRY_MS));
  }
}
