// What all stories share: Stripe's library pointed at the simulator, and the
// simulator's control plane. node_test.go starts one simulator for each file.
import assert from 'node:assert/strict';
import http from 'node:http';
import { after } from 'node:test';
import Stripe from 'stripe';

export const base = new URL(process.env.STRIPESIM_URL);
export const key = process.env.STRIPESIM_KEY;

// One agent for all clients: its connections end with the stories.
const httpAgent = new http.Agent({ keepAlive: true });
after(() => httpAgent.destroy());

// client makes a Stripe client as an application would.
export function client(options = {}, secret = key) {
  return new Stripe(secret, {
    apiVersion: '2023-10-16', protocol: 'http', host: base.hostname, port: base.port, maxNetworkRetries: 0, telemetry: false, timeout: 10_000, httpAgent, ...options,
  });
}

// control calls the simulator's own plane.
export async function control(path, body = {}, method = 'POST') {
  const answer = await fetch(new URL('/_sim/' + path, base), { method, body: method === 'GET' ? undefined : JSON.stringify(body) });
  const value = await answer.json();
  assert.equal(answer.status, 200, JSON.stringify(value));
  return value;
}

// fault lets the next calls go wrong while a story's part runs.
export async function fault(rule, part) {
  await control('faults', { rules: [rule] });
  try {
    return await part();
  } finally {
    await control('faults', {}, 'DELETE');
  }
}

// failure gives the error that a call has to end with.
export async function failure(call) {
  try {
    await call;
  } catch (error) {
    return error;
  }
  assert.fail('the call succeeded, and had to be refused');
}

// all collects a list through the library's own pagination.
export async function all(list) {
  const items = [];
  for await (const item of list) items.push(item);
  return items;
}

// receiver is a real HTTP server that webhooks reach. What it got is kept as it came.
export async function receiver(t, status = () => 204) {
  const got = [];
  const waiting = [];
  const server = http.createServer((request, response) => {
    const parts = [];
    request.on('data', (part) => parts.push(part));
    request.on('end', () => {
      got.push({ body: Buffer.concat(parts), signature: request.headers['stripe-signature'], headers: request.headers });
      response.writeHead(status(got.length)).end();
      for (const look of waiting) look();
    });
  });
  await new Promise((done) => server.listen(0, '127.0.0.1', done));
  t.after(() => { server.closeAllConnections(); server.close(); });
  return {
    url: `http://127.0.0.1:${server.address().port}/hook`,
    got,
    // until waits for deliveries that satisfy a condition.
    until: (enough) => new Promise((done, fail) => {
      const limit = setTimeout(() => fail(new Error(`${got.length} webhooks arrived, and not what was waited for`)), 15_000);
      const look = () => { if (enough(got)) { clearTimeout(limit); done(); } };
      waiting.push(look);
      look();
    }),
  };
}
