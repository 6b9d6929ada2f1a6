// Plays do against a running tallystick, as client.test.mjs does, with models that answer, refuse, hang and break.
import assert from 'node:assert/strict';
import http from 'node:http';
import { after, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { createClient, newId, NoActualError, notUsed, TallystickError, unknownOutcome, UnsettledError, usedBefore } from '../dist/index.js';
import { available, key, refused, through, url } from './helpers.mjs';

const plain = createClient({ url, key });
const hold = (more = {}) => ({ account: 'acme', meter: 'out', quantity: 5, ...more });

// has holds the balance against what it should be, to the last place that the server keeps.
const has = async (credits, message) => assert.equal((await available(plain)).toFixed(6), credits.toFixed(6), message);

async function stands(id) {
  const { data } = await plain.GET('/v1/reservations/{id}', { params: { path: { id }, query: { account: 'acme' } } });
  return data;
}

// release lets go of a hold that a test leaves behind.
const release = (id) => plain.POST('/v1/reservations/{id}/release', { params: { path: { id }, query: { account: 'acme' } }, body: {} });

// model is a server that treats its callers as told: 'answer', 'hang' or 'cut'.
async function model() {
  const server = http.createServer((request, response) => {
    if (request.url === '/cut') request.socket.destroy();
    if (request.url === '/half') { response.writeHead(200, { 'Content-Length': 100 }); response.write('{'); setTimeout(() => request.socket.destroy(), 20); }
  });
  await new Promise((done) => server.listen(0, '127.0.0.1', done));
  after(() => { server.closeAllConnections(); server.close(); });
  return `http://127.0.0.1:${server.address().port}`;
}

test('what was used is charged, and the rest comes back', async () => {
  const before = await available(plain);
  let seen;
  const outcome = await plain.do(hold({ dimensions: { model: 'large' } }), async ({ id }) => {
    seen = await stands(id);
    return { quantity: 2, value: 'hello' };
  });
  assert.equal(seen.state, 'open');
  assert.equal(seen.credits, '5');
  assert.equal(outcome.state, 'captured');
  assert.equal(outcome.value, 'hello');
  assert.equal(outcome.usage.credits, '2');
  assert.deepEqual(outcome.usage.dimensions, { model: 'large' });
  assert.equal(outcome.id, seen.id);
  await has(before - 2);
});

test('an error says how the call has ended', async () => {
  const at = await model();
  const shut = http.createServer();
  await new Promise((done) => shut.listen(0, '127.0.0.1', done));
  const gone = `http://127.0.0.1:${shut.address().port}`;
  await new Promise((done) => shut.close(done));
  const raise = (error) => async () => { throw error; };
  class APIConnectionTimeoutError extends Error {}
  const cases = {
    'an ordinary error': ['released', raise(new Error('the model refused'))],
    'a status': ['released', raise(Object.assign(new Error('429'), { status: 429 }))],
    'no connection': ['released', () => fetch(gone)],
    'not used': ['released', raise(notUsed(new DOMException('late', 'TimeoutError')))],
    'a timeout': ['in_doubt', () => fetch(at + '/hang', { signal: AbortSignal.timeout(50) })],
    'a cut': ['in_doubt', () => fetch(at + '/cut')],
    'half an answer': ['in_doubt', async () => (await fetch(at + '/half')).text()],
    'a timeout of an SDK': ['in_doubt', raise(new APIConnectionTimeoutError('Request timed out.'))],
    'a wrapped reset': ['in_doubt', raise(new Error('x', { cause: Object.assign(new Error('y'), { code: 'ECONNRESET' }) }))],
    'unknown': ['in_doubt', raise(unknownOutcome(new Error('who knows')))],
    'a bug': ['in_doubt', async () => JSON.parse('{')],
    'a text': ['in_doubt', raise('thrown')],
  };
  for (const [name, [state, work]] of Object.entries(cases)) {
    const before = await available(plain);
    let settled;
    let thrown;
    const original = await work().then(() => assert.fail(), (e) => e);
    await plain.do(hold(), async () => { thrown = await work().catch((e) => e); throw thrown; }, { onSettled: (o) => { settled = o; } })
      .then(() => assert.fail(name), (e) => assert.equal(e, thrown, `${name}: the error goes on as it is`));
    assert.equal(settled.state, state, `${name}: ${original}`);
    const { state: standing, reason } = await stands(settled.id);
    assert.equal(standing, state, name);
    await has(before - (state === 'in_doubt' ? 5 : 0), name);
    if (state === 'in_doubt') {
      assert.ok(reason, `${name} has a reason`);
      await release(settled.id);
    }
  }
});

test('the end of the caller leaves doubt, and the settlement goes on', async () => {
  const stop = new AbortController();
  const left = new Error('the user has left');
  let settled;
  const call = plain.do(hold(), async ({ signal }) => {
    stop.abort(left);
    signal.throwIfAborted();
  }, { signal: stop.signal, onSettled: (o) => { settled = o; } });
  await assert.rejects(call, (e) => e === left);
  assert.equal((await stands(settled.id)).state, 'in_doubt');
  await release(settled.id);
  await assert.rejects(plain.do(hold(), () => assert.fail('the work is not called'), { signal: AbortSignal.abort(left) }), (e) => e === left);
});

test('nothing used, nothing said, and usage beside an error', async () => {
  const before = await available(plain);
  for (const zero of [0, '0', '0.000']) assert.equal((await plain.do(hold(), async () => ({ quantity: zero, value: 1 }))).state, 'released');
  await has(before);
  let settled;
  const onSettled = (o) => { settled = o; };
  for (const nothing of [undefined, {}]) {
    await assert.rejects(plain.do(hold(), async () => nothing, { onSettled }), NoActualError);
    assert.equal((await stands(settled.id)).state, 'in_doubt');
    await release(settled.id);
  }
  const half = new Error('the filter stopped the answer');
  await assert.rejects(plain.do(hold(), async () => { throw usedBefore(half, { quantity: '1.5' }); }, { onSettled }), (e) => e === half);
  assert.equal(settled.state, 'captured');
  await has(before - 1.5);
  await assert.rejects(plain.do(hold(), async () => { throw usedBefore(new DOMException('late', 'TimeoutError'), { quantity: 3 }); }, { onSettled }));
  const { state, reason } = await stands(settled.id);
  assert.equal(state, 'in_doubt');
  assert.match(reason, /3 counted until then/);
  await release(settled.id);
});

test('in credits, and more than was held', async () => {
  const before = await available(plain);
  const outcome = await plain.do({ account: 'acme', meter: 'out', credits: '2' }, async () => ({ credits: '3.5' }));
  assert.equal(outcome.usage.credits, '3.5');
  await has(before - 3.5);
});

test('a call is charged once, whatever becomes of its tries', async () => {
  for (const steps of [['cut', 'cut'], ['lost'], ['lost', 'lost', 'lost'], ['half', undefined, 'half'], ['lost', undefined, undefined, 'lost', 'cut']]) {
    const { client, plan } = through([...steps]);
    const before = await available(plain);
    let called = 0;
    const outcome = await client.do(hold(), async () => { called++; return { quantity: 1 }; });
    assert.equal(outcome.state, 'captured');
    assert.equal(called, 1);
    assert.equal(plan.length, 0);
    await has(before - 1);
  }
});

test('without tallystick, credits or a fresh id the work is not called', async () => {
  const never = () => assert.fail('the work was called');
  const { client } = through(Array(100).fill('cut'), { patienceMs: 300 });
  assert.equal((await refused(client.do(hold(), never))).code, 'unreachable');
  assert.equal((await refused(plain.do(hold({ quantity: 100000 }), never))).code, 'insufficient_credits');
  const id = newId();
  await plain.do(hold({ id }), async () => ({ quantity: 1 }));
  assert.equal((await refused(plain.do(hold({ id }), never))).code, 'reservation_closed');
  const before = await available(plain);
  const open = newId(); // somebody died while it was open: the next goes on with it
  await plain.POST('/v1/reservations', { body: { id: open, ...hold(), ttl_seconds: 60 } });
  assert.equal((await plain.do(hold({ id: open }), async () => ({ quantity: 1 }))).state, 'captured');
  await has(before - 1);
});

test('a reservation is extended while the work is done', async () => {
  const { client } = through([undefined, 'cut']); // the first heartbeat is lost
  let expires;
  const outcome = await client.do(hold({ ttlSeconds: 3 }), async ({ id }) => {
    const first = Date.parse((await stands(id)).expires_at);
    await sleep(3500);
    const now = await stands(id);
    assert.equal(now.state, 'open', 'it has outlived its first time');
    expires = Date.parse(now.expires_at) - first;
    return { quantity: 1 };
  });
  assert.ok(expires > 1500, `extended by ${expires} ms`);
  assert.equal(outcome.state, 'captured');
});

test('a settlement that does not get through says what was to be sent', async () => {
  let settled;
  const { client } = through([undefined, ...Array(100).fill('cut')], { patienceMs: 300 });
  const error = await client.do(hold(), async () => ({ quantity: 2 }), { onSettled: (o) => { settled = o; } }).then(() => assert.fail(), (e) => e);
  assert.ok(error instanceof UnsettledError, String(error));
  assert.equal(error.outcome.state, 'unsettled');
  assert.equal(settled, error.outcome);
  assert.equal(error.workError, undefined);
  assert.deepEqual(error.unsettled[0].body, { quantity: 2 });
  assert.ok(error.unsettled[0].error instanceof TallystickError && error.cause === error.unsettled[0].error);
  assert.equal((await stands(error.outcome.id)).state, 'open');
  const path = error.unsettled[0].path;
  const sent = await fetch(url + path, { method: 'POST', headers: { Authorization: `Bearer ${key}`, 'Content-Type': 'application/json' }, body: JSON.stringify(error.unsettled[0].body) });
  assert.equal(sent.status, 201, 'what it says can be sent as it is');
  const both = through([undefined, ...Array(100).fill('cut')], { patienceMs: 300 }).client;
  const failed = new Error('the model refused');
  const unsettled = await both.do(hold(), async () => { throw failed; }).then(() => assert.fail(), (e) => e);
  assert.ok(unsettled instanceof UnsettledError && unsettled.workError === failed);
  await release(unsettled.outcome.id);
});

test('usage of other meters is recorded beside it', async () => {
  const before = await available(plain);
  const outcome = await plain.do(hold({ dimensions: { model: 'large' } }), async () => ({ quantity: 2, also: [{ meter: 'in', quantity: 4 }, { meter: 'cached', quantity: 10 }] }));
  await has(before - 2 - 2 - 1);
  assert.equal(outcome.also[0].usage.id, `${outcome.id}:in`);
  assert.deepEqual(outcome.also[1].usage.dimensions, { model: 'large' });
  const only = await plain.do(hold(), async () => ({ also: [{ meter: 'in', quantity: 2 }] }));
  assert.equal(only.state, 'released');
  await has(before - 6);
  const error = await plain.do(hold(), async () => ({ quantity: 1, also: [{ meter: 'nowhere', quantity: 1 }, { meter: 'in', quantity: 2 }] })).then(() => assert.fail(), (e) => e);
  assert.ok(error instanceof UnsettledError);
  assert.equal(error.outcome.state, 'captured');
  assert.equal(error.unsettled.length, 1);
  assert.equal(error.unsettled[0].error.code, 'meter_not_found');
  assert.equal(error.outcome.also[1].result, 'recorded');
  await has(before - 8);
});
