// A shop's day: a customer buys, pays by card and by bank, and gets money back.
import assert from 'node:assert/strict';
import test from 'node:test';
import { all, client, control, failure } from './sim.mjs';

const stripe = client();

async function shop() {
  const customer = await stripe.customers.create({ name: 'Acme', email: 'acme@example.com', metadata: { account: 'acme' }, address: { city: 'Wien', country: 'AT' } });
  const product = await stripe.products.create({ name: 'Credits', metadata: { credits: '100' } });
  const price = await stripe.prices.create({ product: product.id, currency: 'usd', unit_amount: 1000, metadata: { credits: '100' } });
  return { customer, product, price };
}

async function session(customer, price, quantity = 1) {
  return stripe.checkout.sessions.create({
    mode: 'payment', customer: customer.id, client_reference_id: 'acme', success_url: 'https://example.com/thanks', metadata: { order: '7' },
    line_items: [{ price: price.id, quantity }],
  });
}

test('a customer is made, read, changed, listed and deleted', async () => {
  const { customer } = await shop();
  assert.equal(customer.object, 'customer');
  assert.match(customer.lastResponse.requestId, /^req_/);
  assert.equal(customer.lastResponse.apiVersion, '2023-10-16');
  assert.equal(customer.address.city, 'Wien');
  const changed = await stripe.customers.update(customer.id, { name: 'Acme Ltd', metadata: { account: '', plan: 'gold' } });
  assert.equal(changed.name, 'Acme Ltd');
  assert.deepEqual(changed.metadata, { plan: 'gold' });
  assert.deepEqual((await stripe.customers.list({ email: 'acme@example.com', limit: 1 })).data.map((c) => c.id), [customer.id]);
  const gone = await stripe.customers.del(customer.id);
  assert.deepEqual({ id: gone.id, object: gone.object, deleted: gone.deleted }, { id: customer.id, object: 'customer', deleted: true });
  assert.equal((await stripe.customers.retrieve(customer.id)).deleted, true);
  assert.equal((await failure(stripe.customers.update(customer.id, { name: 'again' }))).code, 'resource_missing');
});

test('checkout is paid, refunded in part and in full', async () => {
  const { customer, price } = await shop();
  const open = await session(customer, price, 3);
  assert.equal(open.status, 'open');
  assert.equal(open.payment_status, 'unpaid');
  assert.equal(open.payment_intent, null);
  assert.equal(open.amount_total, 3000);
  await control(`checkout/sessions/${open.id}/pay`, { outcome: 'paid' });
  const paid = await stripe.checkout.sessions.retrieve(open.id, { expand: ['line_items.data.price.product', 'payment_intent.latest_charge', 'customer'] });
  assert.equal(paid.status, 'complete');
  assert.equal(paid.payment_status, 'paid');
  assert.equal(paid.line_items.data[0].price.product.name, 'Credits');
  assert.equal(paid.customer.email, 'acme@example.com');
  const charge = paid.payment_intent.latest_charge;
  assert.equal(charge.amount, 3000);
  assert.equal(charge.refunds, undefined, 'the refunds of a charge are shown only when they are asked for');

  const items = await all(stripe.checkout.sessions.listLineItems(open.id, { limit: 1 }));
  assert.deepEqual(items.map((i) => [i.quantity, i.amount_total]), [[3, 3000]]);

  const part = await stripe.refunds.create({ payment_intent: paid.payment_intent.id, amount: 1000, reason: 'requested_by_customer' });
  assert.equal(part.status, 'succeeded');
  let now = await stripe.charges.retrieve(charge.id, { expand: ['refunds'] });
  assert.equal(now.amount_refunded, 1000);
  assert.equal(now.refunded, false);
  assert.deepEqual(now.refunds.data.map((r) => r.id), [part.id]);

  const much = await failure(stripe.refunds.create({ charge: charge.id, amount: 2001 }));
  assert.match(much.message, /is greater than unrefunded amount on charge/);
  const rest = await stripe.refunds.create({ charge: charge.id });
  assert.equal(rest.amount, 2000);
  now = await stripe.charges.retrieve(charge.id);
  assert.equal(now.amount_refunded, 3000);
  assert.equal(now.refunded, true);
  assert.equal((await failure(stripe.refunds.create({ charge: charge.id }))).code, 'charge_already_refunded');
  assert.deepEqual((await all(stripe.refunds.list({ charge: charge.id, limit: 1 }))).map((r) => r.id), [rest.id, part.id]);

  await control(`refunds/${rest.id}/fail`);
  const failed = await stripe.refunds.retrieve(rest.id);
  assert.equal(failed.status, 'failed');
  assert.equal(failed.failure_reason, 'expired_or_canceled_card');
});

test('a bank payment settles later, or fails', async () => {
  const { customer, price } = await shop();
  for (const [outcome, payment, status] of [['async_succeeded', 'paid', 'succeeded'], ['async_failed', 'unpaid', 'requires_payment_method']]) {
    const bank = await session(customer, price);
    await control(`checkout/sessions/${bank.id}/pay`, { outcome: 'unpaid' });
    const waiting = await stripe.checkout.sessions.retrieve(bank.id, { expand: ['payment_intent'] });
    assert.deepEqual([waiting.status, waiting.payment_status, waiting.payment_intent.status], ['complete', 'unpaid', 'processing']);
    await control(`checkout/sessions/${bank.id}/pay`, { outcome });
    const settled = await stripe.checkout.sessions.retrieve(bank.id, { expand: ['payment_intent'] });
    assert.deepEqual([settled.payment_status, settled.payment_intent.status], [payment, status]);
  }
});

test('a session expires, by itself or on demand', async () => {
  const { customer, price } = await shop();
  const first = await session(customer, price);
  assert.equal((await stripe.checkout.sessions.expire(first.id)).status, 'expired');
  assert.equal((await failure(stripe.checkout.sessions.expire(first.id))).type, 'StripeInvalidRequestError');
  const second = await session(customer, price);
  await control('clock', { advance_seconds: 24 * 3600 + 1 });
  assert.equal((await stripe.checkout.sessions.retrieve(second.id)).status, 'expired');
});

test('an intent is declined, paid, captured and cancelled', async () => {
  const { customer } = await shop();
  const intent = await stripe.paymentIntents.create({ amount: 500, currency: 'eur', customer: customer.id, metadata: { order: '8' } });
  const declined = await failure(stripe.paymentIntents.confirm(intent.id, { payment_method: 'pm_card_chargeDeclined' }));
  assert.equal(declined.payment_intent.id, intent.id);
  const paid = await stripe.paymentIntents.confirm(intent.id, { payment_method: 'pm_card_visa', expand: ['latest_charge'] });
  assert.equal(paid.status, 'succeeded');
  assert.deepEqual(paid.latest_charge.metadata, { order: '8' });
  assert.equal((await failure(stripe.paymentIntents.cancel(intent.id))).code, 'payment_intent_unexpected_state');
  const held = await stripe.paymentIntents.create({ amount: 700, currency: 'usd', capture_method: 'manual', confirm: true, payment_method: 'pm_card_visa' });
  assert.deepEqual([held.status, held.amount_capturable], ['requires_capture', 700]);
  assert.equal((await stripe.paymentIntents.capture(held.id)).amount_received, 700);
  const dropped = await stripe.paymentIntents.create({ amount: 700, currency: 'usd' });
  assert.equal((await stripe.paymentIntents.cancel(dropped.id, { cancellation_reason: 'abandoned' })).status, 'canceled');
});
