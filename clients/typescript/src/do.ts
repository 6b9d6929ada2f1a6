/**
 * A metered call: reserve, work, settle. What the work says it has used is captured; without that its error decides. See
 * `docs/client.md` for the table, which is that of the Go client.
 */
import type { Client } from 'openapi-fetch';
import { TallystickError } from './errors.js';
import type { components, paths } from './schema.js';

type Schemas = components['schemas'];

/** What is held before the work: exactly one of `quantity` and `credits`. */
export interface Reservation {
  /**
   * Makes the call one call, however often it is tried: of all that reserve with it, one is charged. Without one, one is
   * made. The id of a call that has ended is refused with `reservation_closed` before the work is done.
   */
  id?: string;
  account: string;
  meter: string;
  quantity?: Schemas['DecimalIn'];
  credits?: Schemas['DecimalIn'];
  dimensions?: Schemas['Texts'];
  /** How long the hold stands without a word, in seconds; 60 by default, at most a day. It is extended while the work is done. */
  ttlSeconds?: number;
}

/** Usage of another meter by the same work; account, dimensions and id are the reservation's where they are left out. */
export type AlsoUsed = Omit<Schemas['UsageRequest'], 'account'> & { account?: string };

/** What the work has used: exactly one of `quantity` and `credits`, of which zero means that nothing was used. */
export interface Actual<T = undefined> {
  quantity?: Schemas['DecimalIn'];
  credits?: Schemas['DecimalIn'];
  /** Those of the reservation where they are left out. */
  dimensions?: Schemas['Texts'];
  /** Recorded after the capture. */
  also?: AlsoUsed[];
  /** Handed through to the outcome. */
  value?: T;
}

/** How a metered call has ended: charged, not charged, held until somebody decides, or not known here. */
export type State = 'captured' | 'released' | 'in_doubt' | 'unsettled';

export interface Outcome<T = undefined> {
  /** Of the reservation. */
  id: string;
  state: State;
  /** Of a capture. */
  usage?: Schemas['Usage'];
  /** Of `also`, in its order; an item that did not get through has none. */
  also?: (Schemas['UsageResult'] | undefined)[];
  value?: T;
}

/** The work, which is given the reservation's id and the caller's signal. */
export type Work<T> = (call: { id: string; signal: AbortSignal | undefined }) => Promise<Actual<T>>;

export interface DoOptions {
  /** Ends the reserving, and the work if that heeds it; never the settlement. */
  signal?: AbortSignal;
  /** Is told how the call has ended, also where `do` throws the work's error. */
  onSettled?: (outcome: Outcome<unknown>) => void;
}

/** A request that had to be sent, and did not get through or was refused: what it says happened. */
export interface Unsettled {
  path: string;
  body: unknown;
  error: unknown;
}

/** The settlement did not get through. What was to be sent is in `unsettled`; a hold runs out by itself. */
export class UnsettledError extends Error {
  readonly outcome: Outcome<unknown>;
  readonly unsettled: Unsettled[];
  /** What the work has thrown, if it has. */
  readonly workError: unknown;

  constructor(outcome: Outcome<unknown>, unsettled: Unsettled[], workError: unknown) {
    super(`the settlement of ${outcome.id} did not get through: ${unsettled.map((u) => u.path).join(', ')}`, { cause: unsettled[0]?.error });
    this.name = 'UnsettledError';
    this.outcome = outcome;
    this.unsettled = unsettled;
    this.workError = workError;
  }
}

/** The work has ended without an error, and without saying what it used: the reservation is in doubt. */
export class NoActualError extends Error {
  constructor() {
    super('the work did not say what it has used');
    this.name = 'NoActualError';
  }
}

type Mark = { used: 'nothing' | 'unknown' } | { used: 'something'; actual: Actual<unknown> };
const marks = new WeakMap<object, Mark>();

function mark<E>(error: E, as: Mark): E {
  if (typeof error === 'object' && error !== null) {
    marks.set(error, as);
    return error;
  }
  return mark(new Error(String(error)) as E, as);
}

/** Marks an error after which nothing can have been used, whatever it looks like: the reservation is released. */
export function notUsed<E>(error: E): E {
  return mark(error, { used: 'nothing' });
}

/** Marks an error after which the work may or may not have been done: the reservation is in doubt. */
export function unknownOutcome<E>(error: E): E {
  return mark(error, { used: 'unknown' });
}

/** Marks an error beside which something was used: it is captured, and the error goes on. After a timeout it is a part, and in doubt. */
export function usedBefore<E>(error: E, actual: Actual<unknown>): E {
  return mark(error, { used: 'something', actual });
}

/** Codes of connections that were never made: nothing was sent. */
const neverSent = new Set(['ECONNREFUSED', 'ENOTFOUND', 'EAI_AGAIN', 'EHOSTUNREACH', 'ENETUNREACH', 'UND_ERR_CONNECT_TIMEOUT']);

/** Codes and names of errors after which the other side may have done the work. */
const broken = /^(ECONNRESET|EPIPE|ECONNABORTED|ETIMEDOUT|UND_ERR_.*|.*(Timeout|Abort).*)$/;

/** Errors of a program, which say nothing about what happened before: as of a panic in Go. */
const bugs = [TypeError, ReferenceError, RangeError, SyntaxError];

/** Whether the work may have been done in spite of its error. */
function isUnknown(error: unknown): boolean {
  let unknown = !(error instanceof Error) || bugs.some((bug) => error instanceof bug);
  let at: unknown = error;
  for (let depth = 0; depth < 8 && typeof at === 'object' && at !== null; depth++) {
    const { code, name, syscall, cause } = at as { code?: unknown; name?: unknown; syscall?: unknown; cause?: unknown };
    if (typeof code === 'string' && (neverSent.has(code) || (code === 'ETIMEDOUT' && syscall === 'connect'))) return false;
    unknown ||= [code, name, at.constructor?.name].some((text) => typeof text === 'string' && broken.test(text)) || /ConnectionError$/.test(at.constructor?.name ?? '');
    at = cause;
  }
  return unknown;
}

function isZero(amount: Schemas['DecimalIn'] | undefined): boolean {
  return amount !== undefined && Number(amount) === 0;
}

const reasonBytesMax = 1000;

/** Makes any text a reason of a doubt. */
function reasonOf(error: unknown, counted?: Schemas['DecimalIn']): string {
  const text = error instanceof Error ? error.message || error.name : String(error);
  const whole = (counted === undefined ? text : `${text}; ${counted} counted until then`).replaceAll('\0', '?');
  const bytes = new TextEncoder().encode(whole).slice(0, reasonBytesMax);
  return new TextDecoder().decode(bytes).replace(/\uFFFD+$/, '').trim() || 'no reason was given';
}

/** Whether the server has refused what was said, for good. A refused key, or a proxy's page, says nothing about it. */
function isDefinite(error: unknown): boolean {
  return error instanceof TallystickError && error.code !== '' && !error.unavailable && error.status !== 401 && error.status !== 403;
}

/** How the work has ended. */
interface Ending<T> {
  actual?: Actual<T> | undefined;
  error?: unknown;
  failed: boolean;
  /** The caller has given up meanwhile. */
  aborted?: boolean | undefined;
}

/** A reservation while the work for it is done. */
class Hold {
  private readonly unsettled: Unsettled[] = [];
  private readonly params: { path: { id: string }; query: { account: string } };
  private stopBeat = async (): Promise<void> => {};

  constructor(private readonly client: Client<paths>, readonly ask: Schemas['ReservationRequest'] & { id: string }, private readonly patienceMs: number) {
    this.params = { path: { id: ask.id }, query: { account: ask.account } };
  }

  async reserve(signal: AbortSignal | undefined): Promise<void> {
    const { response } = await this.client.POST('/v1/reservations', { body: this.ask, ...(signal && { signal }) });
    if (response.headers.get('Idempotent-Replayed') === 'true') {
      // The answer is the first one again: whether the reservation still stands, an extension tells.
      await this.extend(signal);
    }
    this.beat();
  }

  private async extend(signal: AbortSignal | undefined): Promise<void> {
    await this.client.POST('/v1/reservations/{id}/extend', { params: this.params, body: { ttl_seconds: this.ask.ttl_seconds }, ...(signal && { signal }) });
  }

  /** Extends the reservation at a third of its time, so that two beats may be lost. */
  private beat(): void {
    const everyMs = (this.ask.ttl_seconds * 1000) / 3;
    const stop = new AbortController();
    const beats = (async () => {
      while (await pause(everyMs, stop.signal)) {
        try {
          await this.extend(AbortSignal.any ? AbortSignal.any([stop.signal, AbortSignal.timeout(everyMs)]) : stop.signal);
        } catch (error) {
          if (isDefinite(error)) return; // it has ended, and the capture is booked all the same
        }
      }
    })();
    this.stopBeat = async () => { stop.abort(); await beats; };
  }

  /** Sends an ending, once the last beat is over. */
  private async end<A>(verb: 'capture' | 'release' | 'doubt', body: unknown, send: () => Promise<{ data?: A }>): Promise<A | undefined> {
    await this.stopBeat();
    try {
      return (await send()).data;
    } catch (error) {
      this.unsettled.push({ path: `/v1/reservations/${this.ask.id}/${verb}?account=${encodeURIComponent(this.ask.account)}`, body, error });
      return undefined;
    }
  }

  private async release(): Promise<Outcome<unknown>> {
    const done = await this.end('release', {}, () => this.client.POST('/v1/reservations/{id}/release', { params: this.params, body: {} }));
    return { id: this.ask.id, state: done ? 'released' : 'unsettled' };
  }

  private async doubt(reason: string): Promise<Outcome<unknown>> {
    const body = { reason };
    const done = await this.end('doubt', body, () => this.client.POST('/v1/reservations/{id}/doubt', { params: this.params, body }));
    return { id: this.ask.id, state: done ? 'in_doubt' : 'unsettled' };
  }

  private async capture(actual: Actual<unknown>): Promise<Outcome<unknown>> {
    let outcome: Outcome<unknown>;
    if (actual.quantity === undefined && actual.credits === undefined || isZero(actual.quantity) || isZero(actual.credits)) {
      outcome = await this.release();
    } else {
      const { quantity, credits, dimensions } = actual;
      const body: Schemas['CaptureRequest'] = { ...(quantity !== undefined && { quantity }), ...(credits !== undefined && { credits }), ...(dimensions && { dimensions }) };
      const usage = await this.end('capture', body, () => this.client.POST('/v1/reservations/{id}/capture', { params: this.params, body }));
      outcome = { id: this.ask.id, state: usage ? 'captured' : 'unsettled', ...(usage && { usage }) };
    }
    if (actual.also?.length) outcome.also = await this.record(actual.also, actual.dimensions ?? this.ask.dimensions);
    return outcome;
  }

  /** Records usage of other meters, each item until it is decided. */
  private async record(also: AlsoUsed[], dimensions: Schemas['Texts'] | undefined): Promise<(Schemas['UsageResult'] | undefined)[]> {
    const usages = also.map((u) => ({ id: `${this.ask.id}:${u.meter}`, account: this.ask.account, ...(dimensions && { dimensions }), ...u }));
    const results: (Schemas['UsageResult'] | undefined)[] = usages.map(() => undefined);
    const end = Date.now() + this.patienceMs;
    let open = usages.map((_, i) => i);
    let failure: unknown;
    for (let waitMs = 100; open.length > 0; waitMs *= 2) {
      try {
        const { data } = await this.client.POST('/v1/usage/batch', { body: { usage: open.map((i) => usages[i]!) } });
        open.forEach((i, k) => { results[i] = data?.results[k]; });
      } catch (error) {
        failure = error;
        break;
      }
      open = open.filter((i) => isTemporaryItem(results[i]));
      if (open.length === 0 || Date.now() + waitMs >= end) break;
      await pause(waitMs, undefined);
    }
    usages.forEach((body, i) => {
      const problem = results[i]?.problem;
      if (open.includes(i)) results[i] = undefined;
      const error = problem ? new TallystickError(problem.status, problem) : failure;
      if (!results[i] || results[i]?.result === 'refused') this.unsettled.push({ path: '/v1/usage', body, error });
    });
    return results;
  }

  /** Ends the hold as the work demands, and gives what `do` then returns or throws. */
  async settle<T>(ending: Ending<T>): Promise<{ outcome: Outcome<T>; unsettled: UnsettledError | undefined }> {
    const outcome = (await this.ended(ending)) as Outcome<T>;
    if (!ending.failed && ending.actual?.value !== undefined) outcome.value = ending.actual.value;
    return { outcome, unsettled: this.unsettled.length > 0 ? new UnsettledError(outcome, this.unsettled, ending.error) : undefined };
  }

  private async ended({ actual, error, failed, aborted }: Ending<unknown>): Promise<Outcome<unknown>> {
    if (failed) {
      const marked = typeof error === 'object' && error !== null ? marks.get(error) : undefined;
      const used = marked?.used === 'something' ? marked.actual : undefined;
      if (marked?.used === 'unknown' || (marked?.used !== 'nothing' && (aborted || isUnknown(error)))) return this.doubt(reasonOf(error, used?.quantity ?? used?.credits));
      return used ? this.capture(used) : this.release();
    }
    if (actual?.quantity === undefined && actual?.credits === undefined && !actual?.also?.length) return this.doubt(new NoActualError().message);
    return this.capture(actual);
  }
}

function isTemporaryItem(result: Schemas['UsageResult'] | undefined): boolean {
  const status = result?.problem?.status;
  return !result || (status !== undefined && (status >= 500 || status === 429));
}

/** Waits, and tells whether it came to its end. It keeps no process alive. */
function pause(ms: number, signal: AbortSignal | undefined): Promise<boolean> {
  return new Promise((done) => {
    if (signal?.aborted) return done(false);
    const stopped = () => { clearTimeout(timer); done(false); };
    const timer = setTimeout(() => { signal?.removeEventListener('abort', stopped); done(true); }, ms);
    if (signal) timer.unref();
    signal?.addEventListener('abort', stopped, { once: true });
  });
}

/** Reserves, calls the work, and settles; `createClient` binds it as `do`. */
export async function doWork<T>(
  client: Client<paths>, patienceMs: number, newId: () => string, reservation: Reservation, work: Work<T>, options: DoOptions = {},
): Promise<Outcome<T>> {
  const { id, account, meter, quantity, credits, dimensions, ttlSeconds } = reservation;
  const hold = new Hold(client, {
    id: id || newId(), account, meter, ttl_seconds: ttlSeconds ?? 60,
    ...(quantity !== undefined && { quantity }), ...(credits !== undefined && { credits }), ...(dimensions && { dimensions }),
  }, patienceMs);
  await hold.reserve(options.signal);
  let ending: Ending<T>;
  try {
    ending = { actual: await work({ id: hold.ask.id, signal: options.signal }), failed: false };
  } catch (error) {
    ending = { error, failed: true, aborted: options.signal?.aborted };
  }
  const { outcome, unsettled } = await hold.settle(ending);
  options.onSettled?.(outcome);
  if (unsettled) throw unsettled;
  if (ending.failed) throw ending.error;
  if (outcome.state === 'in_doubt') throw new NoActualError();
  return outcome;
}
