// A subscriber's months on a test clock: usage is reported, periods end, invoices are
// finalized and paid, and webhooks tell of it.
import assert from 'node:assert/strict';
import test from 'node:test';
import Stripe from 'stripe';
import { all, client, control, failure, receiver } from './sim.mjs';

const stripe = client();
const errors = Stripe.errors;
const opened = Date.UTC(2024, 0, 31, 12) / 1000;
const february = Date.UTC(2024, 1, 29, 12) / 1000;
const march = Date.UTC(2024, 2, 31, 12) / 1000;
const hour = 3600;

// plan is a subscription on a clock of its own, with a licensed item and a metered one.
async function plan(more = {}) {
  const clock = await stripe.testHelpers.testClocks.create({ frozen_time: opened, name: 'months' });
  const customer = await stripe.customers.create({
    name: 'Acme', test_clock: clock.id, payment_method: 'pm_card_visa', invoice_settings: { default_payment_method: 'pm_card_visa' },
  });
  const product = await stripe.products.create({ name: 'Calls' });
  const base = await stripe.prices.create({ product: product.id, currency: 'usd', unit_amount: 1000, recurring: { interval: 'month' } });
  const calls = await stripe.prices.create({ product: product.id, currency: 'usd', unit_amount_decimal: '2.5', recurring: { interval: 'month', usage_type: 'metered', aggregate_usage: 'sum' } });
  const sub = await stripe.subscriptions.create({ customer: customer.id, items: [{ price: base.id, quantity: 2 }, { price: calls.id }], expand: ['latest_invoice.payment_intent'], ...more });
  const [licensed, metered] = sub.items.data;
  return { clock, customer, product, base, calls, sub, licensed, metered };
}

const advance = async (clock, to) => {
  assert.equal((await stripe.testHelpers.testClocks.advance(clock.id, { frozen_time: to })).status, 'advancing');
  const now = await stripe.testHelpers.testClocks.retrieve(clock.id);
  assert.deepEqual([now.status, now.frozen_time], ['ready', to]);
};

const periods = async (item) => (await all(stripe.subscriptionItems.listUsageRecordSummaries(item.id, { limit: 1 }))).map((s) => [s.total_usage, s.invoice !== null]);

test('usage is reported, summed up, billed and paid', async () => {
  const { clock, customer, calls, sub, metered } = await plan();
  assert.deepEqual([sub.status, sub.current_period_start, sub.current_period_end, sub.test_clock], ['active', opened, february, clock.id]);
  assert.deepEqual([sub.latest_invoice.billing_reason, sub.latest_invoice.total, sub.latest_invoice.status, sub.latest_invoice.payment_intent.status], ['subscription_create', 2000, 'paid', 'succeeded']);
  assert.equal(metered.quantity, undefined);

  const first = await stripe.subscriptionItems.createUsageRecord(metered.id, { quantity: 10, timestamp: 'now' });
  assert.deepEqual([first.object, first.quantity, first.timestamp, first.subscription_item], ['usage_record', 10, opened, metered.id]);
  await advance(clock, opened + 24 * hour);
  await stripe.subscriptionItems.createUsageRecord(metered.id, { quantity: 5, timestamp: opened + hour, action: 'increment' });
  await stripe.subscriptionItems.createUsageRecord(metered.id, { quantity: 7, timestamp: opened + 2 * hour, action: 'set' });
  await stripe.subscriptionItems.createUsageRecord(metered.id, { quantity: 4, timestamp: opened + 2 * hour, action: 'set' });
  await stripe.subscriptionItems.createUsageRecord(metered.id, { quantity: 0, timestamp: opened + hour, action: 'increment' });
  assert.deepEqual(await periods(metered), [[19, false]]);
  const upcoming = await stripe.invoices.retrieveUpcoming({ customer: customer.id, subscription: sub.id });
  assert.deepEqual([upcoming.total, upcoming.lines.data.find((l) => l.price.id === calls.id).quantity], [2048, 19]);

  await advance(clock, february);
  const [draft] = (await stripe.invoices.list({ subscription: sub.id, limit: 1 })).data;
  assert.deepEqual([draft.status, draft.billing_reason, draft.total, draft.paid], ['draft', 'subscription_cycle', 2048, false]);
  assert.deepEqual(draft.lines.data.find((l) => l.price.id === calls.id).period, { start: opened, end: february });
  assert.deepEqual(await periods(metered), [[0, false], [19, true]]);

  // Nobody has to acknowledge invoice.created: an hour later it is finalized and paid.
  await advance(clock, february + 2 * hour);
  const paid = await stripe.invoices.retrieve(draft.id, { expand: ['charge.balance_transaction', 'subscription'] });
  assert.deepEqual([paid.status, paid.paid, paid.amount_paid, paid.charge.amount, paid.charge.balance_transaction.amount, paid.subscription.id], ['paid', true, 2048, 2048, 2048, sub.id]);
  assert.match(paid.number, /-0002$/);

  await stripe.subscriptionItems.createUsageRecord(metered.id, { quantity: 1 });
  await advance(clock, march + 2 * hour);
  assert.deepEqual(await periods(metered), [[0, false], [1, true], [19, true]]);
  const totals = (await all(stripe.invoices.list({ customer: customer.id, limit: 2 }))).map((i) => [i.status, i.total]);
  assert.deepEqual(totals, [['paid', 2003], ['paid', 2048], ['paid', 2000]]);
  const gone = await stripe.testHelpers.testClocks.del(clock.id);
  assert.equal(gone.deleted, true);
  assert.equal((await stripe.customers.retrieve(customer.id)).deleted, true);
  assert.equal((await stripe.subscriptions.retrieve(sub.id)).status, 'canceled');
});

test('what Stripe refuses of usage has its class and its words', async () => {
  const { clock, customer, base, sub, licensed, metered } = await plan();
  const refused = async (call, status, code, param, message) => {
    const error = await failure(call);
    assert.ok(error instanceof errors.StripeInvalidRequestError, error);
    assert.deepEqual([error.statusCode, error.code, error.param], [status, code, param], error.message);
    assert.ok(error.message.includes(message), error.message);
  };
  const record = (item, params) => stripe.subscriptionItems.createUsageRecord(item, params);
  await refused(record(metered.id, { quantity: 1, timestamp: opened - 1 }), 400, undefined, 'timestamp',
    "Cannot create the usage record with this timestamp because timestamps must be after the subscription's last invoice period (or current period start time).");
  await refused(record(metered.id, { quantity: 1, timestamp: opened + 1 }), 400, undefined, 'timestamp', 'must not be in the future');
  await refused(record(licensed.id, { quantity: 1 }), 400, undefined, undefined, 'its price is not metered');
  await refused(record('si_nobody', { quantity: 1 }), 404, 'resource_missing', 'subscription_item', "No such subscription_item: 'si_nobody'");
  await refused(stripe.subscriptions.create({ customer: 'cus_nobody', items: [{ price: base.id }] }), 400, 'resource_missing', 'customer', "No such customer: 'cus_nobody'");
  await refused(stripe.subscriptionItems.del(metered.id), 400, undefined, 'clear_usage', 'all related usage records must be cleared too by setting clear_usage=true');
  await refused(stripe.testHelpers.testClocks.advance(clock.id, { frozen_time: opened }), 400, undefined, 'frozen_time', 'only be advanced forward in time');
  await refused(stripe.testHelpers.testClocks.advance(clock.id, { frozen_time: march + 1 }), 400, undefined, 'frozen_time', 'two intervals');
  await record(metered.id, { quantity: 9 });
  assert.equal((await stripe.subscriptionItems.del(metered.id, { clear_usage: true })).deleted, true);
  assert.equal((await stripe.subscriptions.retrieve(sub.id)).items.data.length, 1);

  // While a clock moves, what lives on it is not changed.
  const { switches } = await control('state', {}, 'GET');
  await control('switches', { ...switches, test_clock_advance_ms: 3_600_000 });
  await stripe.testHelpers.testClocks.advance(clock.id, { frozen_time: february });
  for (const call of [
    () => stripe.subscriptions.update(sub.id, { metadata: { a: 'b' } }), () => stripe.invoices.create({ customer: customer.id }), () => stripe.customers.update(customer.id, { name: 'late' }),
  ]) {
    const busy = await failure(call());
    assert.ok(busy instanceof errors.StripeRateLimitError, busy);
    assert.equal(busy.message, `Test clock advancement underway - cannot perform modifications: ${clock.id}`);
  }
  await control('clock', { advance_seconds: 3601 });
  assert.equal((await stripe.testHelpers.testClocks.retrieve(clock.id)).status, 'ready');
  await control('switches', switches);
});

test('a key reports usage once', async () => {
  const { metered } = await plan();
  const send = () => stripe.subscriptionItems.createUsageRecord(metered.id, { quantity: 3 }, { idempotencyKey: 'usage-1' });
  const first = await send();
  const second = await send();
  assert.deepEqual([second.id, second.lastResponse.headers['idempotent-replayed']], [first.id, 'true']);
  assert.deepEqual(await periods(metered), [[3, false]]);
  const other = await failure(stripe.subscriptionItems.createUsageRecord(metered.id, { quantity: 4 }, { idempotencyKey: 'usage-1' }));
  assert.ok(other instanceof errors.StripeIdempotencyError, other);
  assert.deepEqual(await periods(metered), [[3, false]]);
});

test('changes are told with what was before, by webhooks that verify', async (t) => {
  const hook = await receiver(t);
  const endpoint = await stripe.webhookEndpoints.create({
    url: hook.url, enabled_events: ['customer.subscription.updated', 'customer.subscription.deleted', 'invoice.finalized', 'invoice.paid', 'test_helpers.test_clock.ready'], api_version: '2023-10-16',
  });
  const { clock, sub, licensed } = await plan();
  await stripe.subscriptions.update(sub.id, { cancel_at_period_end: true, metadata: { plan: 'gold' } });
  await stripe.subscriptions.update(sub.id, { cancel_at_period_end: false });
  await stripe.subscriptions.update(sub.id, { items: [{ id: licensed.id, quantity: 5 }], proration_behavior: 'none' });
  await advance(clock, february + 2 * hour);
  await stripe.subscriptions.cancel(sub.id);
  const arrived = () => hook.got.map(({ body, signature }) => stripe.webhooks.constructEvent(body, signature, endpoint.secret));
  await hook.until((got) => got.length >= 10);
  const events = arrived();
  const of = (type) => events.filter((e) => e.type === type).map((e) => e.data);
  assert.deepEqual(events.map((e) => e.type).sort(), [
    'customer.subscription.deleted', ...Array(4).fill('customer.subscription.updated'), 'invoice.finalized', 'invoice.finalized', 'invoice.paid', 'invoice.paid', 'test_helpers.test_clock.ready',
  ]);
  const ended = of('customer.subscription.updated').find((d) => d.object.cancel_at_period_end);
  assert.deepEqual(ended.previous_attributes, { cancel_at: null, cancel_at_period_end: false, canceled_at: null, cancellation_details: { reason: null }, metadata: { plan: null } });
  const renewed = of('customer.subscription.updated').find((d) => d.object.current_period_start === february);
  assert.deepEqual(renewed.previous_attributes, { current_period_end: february, current_period_start: opened, latest_invoice: sub.latest_invoice.id });
  const more = of('customer.subscription.updated').find((d) => d.previous_attributes.items);
  assert.deepEqual([more.object.items.data[0].quantity, more.previous_attributes.items.data[0].quantity], [5, 2]);
  assert.equal(of('customer.subscription.deleted')[0].object.status, 'canceled');
  assert.deepEqual(of('invoice.paid').map((d) => d.object.total).sort(), [2000, 5000]);
  assert.ok(events.every((e) => e.api_version === '2023-10-16' && e.livemode === false));
  await stripe.webhookEndpoints.del(endpoint.id);
});
