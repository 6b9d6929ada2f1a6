// What both tests use: clients whose tries fail as planned, and what stands at the server.
import assert from 'node:assert/strict';
import { createClient, TallystickError } from '../dist/index.js';

export const url = process.env.TALLYSTICK_URL;
export const key = process.env.TALLYSTICK_API_KEY;
export const usage = (quantity, more = {}) => ({ account: 'acme', meter: 'out', quantity, ...more });

// through is a client whose tries meet what a plan says: 'cut' before, 'lost' after the server has answered, or an answer.
export function through(plan, options = {}) {
  const ids = [];
  const client = createClient({
    url, key, ...options,
    fetch: async (request) => {
      const sent = await request.clone().text();
      ids.push(sent ? JSON.parse(sent).id : undefined);
      const step = plan.shift();
      if (step === 'cut') throw new TypeError('fetch failed');
      if (step instanceof Response) return step;
      const answer = await fetch(request);
      if (step === 'lost') throw new TypeError('terminated');
      if (step === 'half') return new Response((await answer.text()).slice(0, 20), { status: answer.status, headers: answer.headers });
      return answer;
    },
  });
  return { client, ids, plan };
}

export const wait = (status, seconds) => new Response('{"code": "overloaded", "detail": "wait"}', { status, headers: { 'Retry-After': seconds, 'Content-Type': 'application/problem+json' } });

export async function available(client) {
  const { data } = await client.GET('/v1/accounts/{account}', { params: { path: { account: 'acme' } } });
  return Number(data.balance.available);
}

export async function refused(call) {
  const error = await call.then(() => assert.fail('it had to be refused'), (e) => e);
  assert.ok(error instanceof TallystickError, String(error));
  return error;
}
