/** What calls throw. */
import type { components } from './schema.js';

type Schemas = components['schemas'];

/** A refusal by the server (`code`, stable: branch on it; nothing was changed), or, with the code `unreachable`, its silence. */
export class TallystickError extends Error {
  readonly status: number;
  readonly code: string;
  readonly requestId: string | undefined;
  /** The whole problem document: `errors`, `available`, `held`, `state` … */
  readonly problem: Partial<Schemas['Problem']> & Record<string, unknown>;

  constructor(status: number, problem: Partial<Schemas['Problem']> & Record<string, unknown>, options?: ErrorOptions) {
    super(problem.detail ?? `tallystick was expected, and something else answered ${status}`, options);
    this.name = 'TallystickError';
    this.status = status;
    this.code = problem.code ?? '';
    this.requestId = problem.request_id;
    this.problem = problem;
  }

  /** Whether the outcome is unknown, or the server asked to wait: the same call with the same id finds out. */
  get unavailable(): boolean {
    return this.code === 'unreachable' || isTemporary(this.status);
  }
}

/** Whether a status says that the same request may succeed later. */
export function isTemporary(status: number): boolean {
  return status >= 500 || status === 429 || status === 408;
}
