// Usage: a meter, its events, their summaries, and taking an event back.
import assert from 'node:assert/strict';
import test from 'node:test';
import { all, client, control, failure } from './sim.mjs';

const stripe = client();
const hour = 3600;

test('usage is metered, summed up and taken back', async () => {
  const customer = await stripe.customers.create({ name: 'Acme' });
  const meter = await stripe.billing.meters.create({
    display_name: 'Tokens', event_name: 'tokens', default_aggregation: { formula: 'sum' }, customer_mapping: { event_payload_key: 'stripe_customer_id', type: 'by_id' },
    value_settings: { event_payload_key: 'value' },
  });
  assert.equal(meter.status, 'active');
  const { now } = await control('clock', {}, 'GET');
  const start = Math.floor(now / hour) * hour - 3 * hour;
  const events = [['a', start, '5'], ['b', start + hour - 1, '7'], ['c', start + hour, '9007199254740993'], ['d', start + 2 * hour, '-2']];
  for (const [identifier, timestamp, value] of events) {
    const event = await stripe.billing.meterEvents.create({ event_name: 'tokens', identifier, timestamp, payload: { stripe_customer_id: customer.id, value } });
    assert.deepEqual([event.object, event.identifier, event.payload.value], ['billing.meter_event', identifier, value]);
  }
  const again = await failure(stripe.billing.meterEvents.create({ event_name: 'tokens', identifier: 'a', payload: { stripe_customer_id: customer.id, value: '5' } }));
  assert.equal(again.statusCode, 400);
  assert.equal(again.message, 'An event already exists with identifier a.');
  assert.equal(again.headers['stripe-should-retry'], 'false');

  const rows = (params) => all(stripe.billing.meters.listEventSummaries(meter.id, { customer: customer.id, start_time: start, end_time: start + 3 * hour, ...params }));
  const hours = await rows({ value_grouping_window: 'hour', limit: 1 });
  assert.deepEqual(hours.map((r) => [r.start_time - start, r.end_time - start, r.aggregated_value]), [[2 * hour, 3 * hour, -2], [hour, 2 * hour, Number('9007199254740993')], [0, hour, 12]]);
  await stripe.billing.meterEventAdjustments.create({ event_name: 'tokens', type: 'cancel', cancel: { identifier: 'c' } });
  assert.deepEqual((await rows({})).map((r) => r.aggregated_value), [10]);
  const crooked = await failure(rows({ start_time: start + 1 }));
  assert.equal(crooked.type, 'StripeInvalidRequestError');

  const old = await failure(stripe.billing.meterEvents.create({ event_name: 'tokens', timestamp: now - 36 * 24 * hour, payload: { stripe_customer_id: customer.id, value: '1' } }));
  assert.match(old.message, /^The event timestamp cannot be more than 35 days in past\. Expected a timestamp greater than or equal to \d+\.$/);
});

test('an identifier is forgotten after a day', async () => {
  const customer = await stripe.customers.create({ name: 'Acme' });
  await stripe.billing.meters.create({ display_name: 'Calls', event_name: 'calls', default_aggregation: { formula: 'count' } });
  const send = () => stripe.billing.meterEvents.create({ event_name: 'calls', identifier: 'once', payload: { stripe_customer_id: customer.id, value: '1' } });
  await send();
  await control('clock', { advance_seconds: 24 * hour - 60 });
  assert.equal((await failure(send())).statusCode, 400);
  await control('clock', { advance_seconds: 120 });
  await send();
  const { meters } = await control('state', {}, 'GET');
  assert.equal(meters.find((m) => m.event_name === 'calls').total, '2');
});

test('a meter is renamed, put out of use and back', async () => {
  const meter = await stripe.billing.meters.create({ display_name: 'GB', event_name: 'gb', default_aggregation: { formula: 'sum' } });
  assert.equal((await stripe.billing.meters.update(meter.id, { display_name: 'Gigabytes' })).display_name, 'Gigabytes');
  assert.equal((await failure(stripe.billing.meters.create({ display_name: 'GB', event_name: 'gb', default_aggregation: { formula: 'sum' } }))).statusCode, 400);
  const off = await stripe.billing.meters.deactivate(meter.id);
  assert.equal(off.status, 'inactive');
  assert.ok(off.status_transitions.deactivated_at > 0);
  assert.equal((await stripe.billing.meters.reactivate(meter.id)).status, 'active');
  const product = await stripe.products.create({ name: 'GB' });
  const price = await stripe.prices.create({ product: product.id, currency: 'usd', unit_amount_decimal: '0.002', recurring: { interval: 'month', usage_type: 'metered', meter: meter.id } });
  assert.deepEqual([price.unit_amount, price.unit_amount_decimal, price.recurring.meter], [null, '0.002', meter.id]);
});
