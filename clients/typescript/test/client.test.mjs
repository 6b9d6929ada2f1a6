// Plays the client against a running tallystick: typescript_test.go starts one, with the account acme, a hundred credits
// of it, and the meter out at one credit each.
import assert from 'node:assert/strict';
import http from 'node:http';
import { after, test } from 'node:test';
import { createClient, newId } from '../dist/index.js';
import { available, key, refused, through, url, usage, wait } from './helpers.mjs';

test('usage is recorded and typed answers come back', async () => {
  const client = createClient({ url: url + '/', key });
  const before = await available(client);
  const { data, response } = await client.POST('/v1/usage', { body: usage('1.5') });
  assert.equal(data.credits, '1.5');
  assert.equal(response.status, 201);
  assert.equal(await available(client), before - 1.5);
});

test('a usage is charged once, whatever becomes of its tries', async () => {
  const plans = [['cut'], ['lost'], ['half'], [wait(503, '0')], [wait(429, '0')], ['lost', wait(500, '0'), 'cut']];
  for (const steps of plans) {
    const { client, ids, plan } = through([...steps]);
    const before = await available(createClient({ url, key }));
    const { data } = await client.POST('/v1/usage', { body: usage(1) });
    assert.equal(data.quantity, '1');
    assert.equal(plan.length, 0);
    assert.equal(ids.length, steps.length + 1);
    assert.equal(new Set(ids).size, 1, 'each try has the same id');
    assert.match(ids[0], /^[A-Za-z0-9._:-]{8,128}$/);
    assert.equal(await available(client), before - 1);
  }
});

test('an id of the caller stays', async () => {
  const { client, ids } = through([]);
  const id = newId();
  await client.POST('/v1/usage', { body: usage(1, { id }) });
  const { response } = await client.POST('/v1/usage', { body: usage(1, { id }) });
  assert.deepEqual(ids, [id, id]);
  assert.equal(response.headers.get('Idempotent-Replayed'), 'true');
  const other = newId();
  const { data } = await client.POST('/v1/usage', { body: usage(1), params: { header: { 'Idempotency-Key': other } } });
  assert.equal(data.id, other);
  const conflict = await refused(client.POST('/v1/usage', { body: usage(2, { id }) }));
  assert.equal(conflict.code, 'idempotency_conflict');
});

test('refusals are typed, and not sent again', async () => {
  const { client, ids } = through([]);
  const error = await refused(client.POST('/v1/usage', { body: usage(100000) }));
  assert.equal(error.code, 'insufficient_credits');
  assert.equal(error.status, 402);
  assert.equal(error.unavailable, false);
  assert.ok(Number(error.problem.available) < 100);
  assert.ok(error.requestId);
  assert.equal(ids.length, 1);
  const page = await refused(through([new Response('<html>', { status: 404 })]).client.POST('/v1/usage', { body: usage(1) }));
  assert.equal(page.code, '');
  const unauthorized = await refused(createClient({ url, key: 'tsk_wrong' }).GET('/v1/meters'));
  assert.equal(unauthorized.code, 'unauthorized');
});

test('reservations live through their routes', async () => {
  const { client } = through(['lost', 'lost', 'lost']);
  const before = await available(createClient({ url, key }));
  const { data: hold } = await client.POST('/v1/reservations', { body: usage(10, { ttl_seconds: 60 }) });
  assert.equal(hold.state, 'open');
  const params = { path: { id: hold.id }, query: { account: 'acme' } };
  await client.POST('/v1/reservations/{id}/extend', { params, body: { ttl_seconds: 90 } });
  const { data: captured } = await client.POST('/v1/reservations/{id}/capture', { params, body: { quantity: '4' } });
  assert.equal(captured.credits, '4');
  const closed = await refused(client.POST('/v1/reservations/{id}/release', { params }));
  assert.equal(closed.code, 'reservation_closed');
  assert.equal(closed.problem.state, 'captured');
  assert.equal(await available(client), before - 4);
});

test('Retry-After is obeyed, and patience ends', async () => {
  let start = Date.now();
  await through([wait(429, '1')]).client.POST('/v1/usage', { body: usage('0.1') });
  assert.ok(Date.now() - start >= 1000);
  start = Date.now();
  const asked = await refused(through([wait(503, '3600')]).client.POST('/v1/usage', { body: usage('0.1') }));
  assert.ok(asked.unavailable && asked.status === 503 && Date.now() - start < 5000);
  const { client, ids } = through(Array(100).fill('cut'), { patienceMs: 500 });
  const gone = await refused(client.POST('/v1/usage', { body: usage('0.1') }));
  assert.ok(gone.unavailable && gone.code === 'unreachable' && gone.cause instanceof TypeError);
  assert.ok(ids.length > 1 && ids.length < 20);
});

test('a key is made once', async () => {
  const { client, ids } = through(['cut', 'cut']);
  const error = await refused(client.POST('/v1/keys', { body: { name: 'x', scopes: ['read'] } }));
  assert.equal(error.code, 'unreachable');
  assert.equal(ids.length, 1);
});

test('a server that hangs is given up, by the client and by the caller', async () => {
  const server = http.createServer(() => {});
  await new Promise((done) => server.listen(0, '127.0.0.1', done));
  after(() => { server.closeAllConnections(); server.close(); });
  const client = createClient({ url: `http://127.0.0.1:${server.address().port}`, key, tryMs: 100, patienceMs: 400 });
  assert.equal((await refused(client.GET('/v1/meters'))).code, 'unreachable');
  const patient = createClient({ url: `http://127.0.0.1:${server.address().port}`, key });
  const start = Date.now();
  await assert.rejects(patient.GET('/v1/meters', { signal: AbortSignal.timeout(100) }), (e) => e.name === 'TimeoutError');
  assert.ok(Date.now() - start < 3000);
});

test('a change with If-Match is refused when stale, and not repeated in the dark', async () => {
  const { client, ids } = through([undefined, 'lost']);
  const params = { path: { account: 'careful' } };
  const { data: before } = await client.PUT('/v1/accounts/{account}', { params, body: { name: 'before' } });
  const changed = { params: { ...params, header: { 'If-Match': before.etag } }, body: { name: 'after' } };
  assert.equal((await refused(client.PUT('/v1/accounts/{account}', changed))).code, 'unreachable');
  assert.equal(ids.length, 2);
  const stale = await refused(client.PUT('/v1/accounts/{account}', changed));
  assert.equal(stale.status, 412);
  assert.equal(stale.code, 'precondition_failed');
});
