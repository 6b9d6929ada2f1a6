/**
 * The client of the tallystick metering API for TypeScript and JavaScript: paths, bodies and answers are typed by
 * `schema.ts`, which is generated from `api/openapi.yaml`. This file adds what makes calls safe: an id for every write,
 * the same id and bytes again until the outcome is known, and errors that say what the server has said.
 */
import { randomUUID } from 'node:crypto';
import createFetchClient, { type Client as FetchClient } from 'openapi-fetch';
import { doWork, type DoOptions, type Outcome, type Reservation, type Work } from './do.js';
import { isTemporary, TallystickError } from './errors.js';
import type { components, paths } from './schema.js';

export type { components, paths };
export type Schemas = components['schemas'];
export { TallystickError } from './errors.js';
export { NoActualError, notUsed, unknownOutcome, UnsettledError, usedBefore } from './do.js';
export type { Actual, AlsoUsed, DoOptions, Outcome, Reservation, State, Unsettled, Work } from './do.js';

/** Calls of every path, and the short way around a model call. */
export interface Client extends FetchClient<paths> {
  /**
   * Reserves, calls `work`, and settles. It rejects with the reservation's refusal (`insufficient_credits`, `unreachable` …;
   * `work` was not called), with what `work` has thrown, as it is, or with an {@link UnsettledError}.
   */
  do<T = undefined>(reservation: Reservation, work: Work<T>, options?: DoOptions): Promise<Outcome<T>>;
}

export interface Options {
  /** The server's address, such as `https://tallystick.internal:8321`. */
  url: string;
  /** An API key. */
  key: string;
  /** Bounds one call with its repeats, in milliseconds; 15 000 by default. */
  patienceMs?: number;
  /** Bounds one try, in milliseconds; 5 000 by default. */
  tryMs?: number;
  /** Used in place of the global one. */
  fetch?: (request: Request) => Promise<Response>;
}

const waitFirstMs = 100;
const waitMaxMs = 3_000;

/** Paths whose writes carry an id in their body. What is done to one reservation has its id in the path. */
const bodyHasId = [/^\/v1\/usage$/, /^\/v1\/reservations$/, /^\/v1\/accounts\/[^/]+\/(grants|adjustments)$/];

/** A write that is not sent again: each time makes another key. Nor is one with `If-Match`, which may have made its own ETag stale. */
const unrepeatable = /^\/v1\/keys$/;

/** An id for a usage, a reservation or a grant. */
export function newId(): string {
  return randomUUID();
}

/**
 * Makes a client. `client.POST('/v1/usage', { body: … })` and so on give `{ data }`, or throw a {@link TallystickError}.
 * A write without an id gets one before it is sent; give your own where the same write may be made again after a crash.
 */
export function createClient(options: Options): Client {
  const send = options.fetch ?? ((request: Request) => globalThis.fetch(request));
  const patienceMs = options.patienceMs ?? 15_000;
  const client = createFetchClient<paths>({
    baseUrl: options.url.replace(/\/+$/, ''),
    fetch: (request) => safely(request, send, patienceMs, options.tryMs ?? 5_000),
  });
  client.use({
    async onRequest({ request }) {
      request.headers.set('Authorization', `Bearer ${options.key}`);
      if (request.method !== 'POST' || !bodyHasId.some((path) => path.test(new URL(request.url).pathname))) return request;
      const body = JSON.parse(await request.clone().text()) as { id?: string };
      if (body.id || request.headers.has('Idempotency-Key')) return request;
      return new Request(request, { body: JSON.stringify({ ...body, id: newId() }) });
    },
    async onResponse({ response }) {
      if (response.ok) return undefined;
      const text = await response.text();
      throw new TallystickError(response.status, problemOf(text));
    },
  });
  return Object.assign(client, {
    do: <T>(reservation: Reservation, work: Work<T>, how?: DoOptions) => doWork(client, patienceMs, newId, reservation, work, how),
  });
}

function problemOf(text: string): Record<string, unknown> {
  try {
    const problem: unknown = JSON.parse(text);
    return typeof problem === 'object' && problem !== null ? (problem as Record<string, unknown>) : {};
  } catch {
    return {};
  }
}

/** Sends a request until its outcome is known or patience ends. */
async function safely(request: Request, send: (request: Request) => Promise<Response>, patienceMs: number, tryMs: number): Promise<Response> {
  const body = request.body ? await request.text() : undefined;
  const repeatable = !(request.method === 'POST' && unrepeatable.test(new URL(request.url).pathname)) && !request.headers.has('If-Match');
  const end = Date.now() + patienceMs;
  for (let wait = waitFirstMs; ; wait = Math.min(2 * wait, waitMaxMs)) {
    request.signal.throwIfAborted();
    let answer: Response | undefined;
    let cause: unknown;
    const left = Math.max(end - Date.now(), 1);
    const limit = new AbortController();
    const stop = () => limit.abort(request.signal.reason);
    const timer = setTimeout(() => limit.abort(new Error(`no answer within ${Math.min(tryMs, left)} ms`)), Math.min(tryMs, left));
    request.signal.addEventListener('abort', stop);
    try {
      const init: RequestInit = { method: request.method, headers: request.headers, signal: limit.signal, redirect: 'manual' };
      if (body !== undefined) init.body = body;
      const response = await send(new Request(request.url, init));
      const whole = await response.arrayBuffer(); // an answer that is cut is none
      answer = new Response(whole.byteLength > 0 ? whole : null, { status: response.status, headers: response.headers });
      if (response.ok && isJSON(response)) JSON.parse(new TextDecoder().decode(whole));
    } catch (error) {
      request.signal.throwIfAborted();
      answer = undefined;
      cause = error;
    } finally {
      clearTimeout(timer);
      request.signal.removeEventListener('abort', stop);
    }
    if (answer && !isTemporary(answer.status)) return answer;
    const pause = (answer && retryAfterMs(answer)) ?? wait * (0.5 + Math.random() / 2);
    if (!repeatable || Date.now() + pause >= end) {
      if (answer) return answer;
      throw new TallystickError(0, { code: 'unreachable', detail: 'tallystick cannot be reached; the outcome is unknown: send the same id again' }, { cause });
    }
    await sleep(pause, request.signal);
  }
}

function isJSON(response: Response): boolean {
  return (response.headers.get('Content-Type') ?? '').includes('json');
}

/** What the header asks for: seconds, or a date. */
function retryAfterMs(answer: Response): number | undefined {
  const header = answer.headers.get('Retry-After');
  if (header === null || header === '') return undefined;
  const seconds = Number(header);
  if (Number.isFinite(seconds)) return Math.max(seconds, 0) * 1000;
  const at = Date.parse(header);
  return Number.isNaN(at) ? undefined : Math.max(at - Date.now(), 0);
}

function sleep(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((done, fail) => {
    const aborted = () => { clearTimeout(timer); fail(signal.reason as Error); };
    const timer = setTimeout(() => { signal.removeEventListener('abort', aborted); done(); }, ms);
    signal.addEventListener('abort', aborted, { once: true });
  });
}
