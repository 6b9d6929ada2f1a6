// Lists: the library's own pagination forwards and backwards, filters, events.
import assert from 'node:assert/strict';
import test from 'node:test';
import { all, client, control, failure } from './sim.mjs';

const stripe = client();

test('lists are walked page by page', async () => {
  const made = [];
  for (let i = 0; i < 7; i++) {
    made.unshift((await stripe.products.create({ name: `product ${i}` })).id);
    await control('clock', { advance_seconds: 1 });
  }
  assert.deepEqual((await all(stripe.products.list({ limit: 3 }))).map((p) => p.id), made);
  assert.deepEqual((await stripe.products.list({ limit: 3 }).autoPagingToArray({ limit: 5 })).map((p) => p.id), made.slice(0, 5));
  const middle = await stripe.products.list({ limit: 2, starting_after: made[2] });
  assert.deepEqual([middle.data.map((p) => p.id), middle.has_more, middle.url], [made.slice(3, 5), true, '/v1/products']);
  const last = await stripe.products.list({ limit: 2, starting_after: made[4] });
  assert.deepEqual([last.data.map((p) => p.id), last.has_more], [made.slice(5), false]);
  const newer = await stripe.products.list({ limit: 2, ending_before: made[4] });
  assert.deepEqual([newer.data.map((p) => p.id), newer.has_more], [made.slice(2, 4), true]);
  assert.deepEqual((await all(stripe.products.list({ limit: 2, ending_before: made[5] }))).map((p) => p.id), made.slice(0, 5).reverse(), 'backwards the oldest comes first');
  const times = await Promise.all([made[4], made[2]].map(async (id) => (await stripe.products.retrieve(id)).created));
  assert.deepEqual((await all(stripe.products.list({ created: { gte: times[0], lt: times[1] } }))).map((p) => p.id), made.slice(3, 5));
  for (const limit of [0, 101]) assert.equal((await failure(stripe.products.list({ limit }))).param, 'limit');
  assert.equal((await failure(stripe.products.list({ starting_after: 'prod_nobody' }))).code, 'resource_missing');
  assert.deepEqual((await stripe.products.list({ active: false })).data, []);
});

test('events tell what has happened, newest first', async () => {
  const customer = await stripe.customers.create({ name: 'Acme' }, { idempotencyKey: 'told' });
  await stripe.customers.update(customer.id, { name: 'Acme Ltd' });
  const intent = await stripe.paymentIntents.create({ amount: 500, currency: 'usd', customer: customer.id, confirm: true, payment_method: 'pm_card_visa' });
  await stripe.refunds.create({ payment_intent: intent.id, amount: 200 });
  await stripe.refunds.create({ payment_intent: intent.id, amount: 100 });

  const refunded = await all(stripe.events.list({ type: 'charge.refunded', limit: 1 }));
  assert.deepEqual(refunded.map((e) => [e.data.object.amount_refunded, e.data.previous_attributes.amount_refunded]), [[300, 200], [200, 0]]);
  assert.equal(refunded[0].data.object.refunds, undefined);
  assert.equal(refunded[0].api_version, '2023-10-16');
  const [created] = await all(stripe.events.list({ type: 'customer.created' }));
  assert.deepEqual([created.data.object.id, created.request.idempotency_key], [customer.id, 'told']);
  const [updated] = await all(stripe.events.list({ type: 'customer.updated' }));
  assert.equal(updated.data.previous_attributes.name, 'Acme');
  const some = await all(stripe.events.list({ types: ['payment_intent.succeeded', 'charge.succeeded'] }));
  assert.deepEqual(some.map((e) => e.type).sort(), ['charge.succeeded', 'payment_intent.succeeded']);
  assert.ok((await all(stripe.events.list({ type: 'charge.*' }))).length >= 3);
  assert.equal((await failure(stripe.events.list({ type: 'charge.*', types: ['charge.succeeded'] }))).type, 'StripeInvalidRequestError');
  assert.equal((await stripe.events.retrieve(created.id)).type, 'customer.created');
  await control('clock', { advance_seconds: 30 * 24 * 3600 });
  assert.deepEqual(await all(stripe.events.list({ limit: 100 })), [], 'events are kept for 30 days');
  assert.equal((await failure(stripe.events.retrieve(created.id))).code, 'resource_missing');
});
