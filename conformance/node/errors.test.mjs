// The library's error classes, each from the answer that it is made for, and what the
// library does by itself about faults.
import assert from 'node:assert/strict';
import test from 'node:test';
import Stripe from 'stripe';
import { client, control, failure, fault } from './sim.mjs';

const stripe = client();
const errors = Stripe.errors;

test('each failure has its class', async () => {
  const intent = await stripe.paymentIntents.create({ amount: 500, currency: 'usd' });
  const declined = await failure(stripe.paymentIntents.confirm(intent.id, { payment_method: 'pm_card_chargeDeclined' }));
  assert.ok(declined instanceof errors.StripeCardError, declined);
  assert.deepEqual([declined.statusCode, declined.code, declined.decline_code, declined.message], [402, 'card_declined', 'generic_decline', 'Your card was declined.']);

  const missing = await failure(stripe.customers.retrieve('cus_nobody'));
  assert.ok(missing instanceof errors.StripeInvalidRequestError, missing);
  assert.deepEqual([missing.statusCode, missing.code, missing.param, missing.message], [404, 'resource_missing', 'id', "No such customer: 'cus_nobody'"]);
  assert.match(missing.requestId, /^req_/);

  const unknown = await failure(stripe.customers.create({ colour: 'red' }));
  assert.ok(unknown instanceof errors.StripeInvalidRequestError, unknown);
  assert.deepEqual([unknown.code, unknown.param, unknown.message], ['parameter_unknown', 'colour', 'Received unknown parameter: colour']);

  await stripe.customers.create({ name: 'one' }, { idempotencyKey: 'used' });
  const used = await failure(stripe.customers.create({ name: 'two' }, { idempotencyKey: 'used' }));
  assert.ok(used instanceof errors.StripeIdempotencyError, used);
  assert.equal(used.statusCode, 400);
  assert.match(used.message, /^Keys for idempotent requests can only be used with the same parameters they were first used with\./);

  const stranger = await failure(client({}, 'sk_live_1').customers.list());
  assert.ok(stranger instanceof errors.StripeAuthenticationError, stranger);
  assert.equal(stranger.statusCode, 401);
});

test('faults have their classes, too', async () => {
  const make = () => stripe.customers.create({ name: 'x' }, { idempotencyKey: 'fault-' + Math.random() });
  const path = '/v1/customers';
  for (const [name, kind, status] of [
    ['rate_limit', errors.StripeRateLimitError, 429], ['lock_timeout', errors.StripeRateLimitError, 429], ['error_500_before', errors.StripeAPIError, 500],
    ['error_500_after', errors.StripeAPIError, 500], ['error_503', errors.StripeAPIError, 503], ['conflict_409', errors.StripeInvalidRequestError, 409],
    ['unauthorized_401', errors.StripeAuthenticationError, 401], ['error_502_html', errors.StripeAPIError, undefined], ['malformed_json', errors.StripeAPIError, undefined],
    ['drop_before', errors.StripeConnectionError, undefined], ['drop_after', errors.StripeConnectionError, undefined],
  ]) {
    const error = await fault({ path, fault: name }, () => failure(make()));
    assert.ok(error instanceof kind, `${name} gives ${error}`);
    if (status) assert.equal(error.statusCode, status, name);
  }
  const limited = await fault({ path, fault: 'rate_limit', retry_after: 7 }, () => failure(make()));
  assert.deepEqual([limited.headers['retry-after'], limited.headers['stripe-rate-limited-reason']], ['7', 'global-rate']);
  const slow = await fault({ path, fault: 'slow', delay_ms: 3000 }, () => failure(client({ timeout: 200 }).customers.list()));
  assert.ok(slow instanceof errors.StripeConnectionError, slow);
});

test('a key executes once, and its answer is given again', async () => {
  const count = async () => (await control('state', {}, 'GET')).counts.customer ?? 0;
  const before = await count();
  const options = { idempotencyKey: 'once' };
  const first = await stripe.customers.create({ name: 'once' }, options);
  const second = await stripe.customers.create({ name: 'once' }, options);
  assert.equal(second.id, first.id);
  assert.equal(first.lastResponse.headers['idempotent-replayed'], undefined);
  assert.equal(second.lastResponse.headers['idempotent-replayed'], 'true');
  assert.equal(second.lastResponse.idempotencyKey, 'once');
  assert.notEqual(second.lastResponse.requestId, first.lastResponse.requestId);
  assert.equal(await count(), before + 1);

  // A stored 500 stays one, and the customer is there all the same.
  const stored = { idempotencyKey: 'stored' };
  await fault({ path: '/v1/customers', fault: 'error_500_after' }, () => failure(stripe.customers.create({ name: 'stored' }, stored)));
  assert.equal((await failure(stripe.customers.create({ name: 'stored' }, stored))).statusCode, 500);
  assert.equal(await count(), before + 2);

  // After a day the key is an unknown one.
  await control('clock', { advance_seconds: 24 * 3600 + 1 });
  assert.notEqual((await stripe.customers.create({ name: 'once' }, options)).id, first.id);
});

test('the library tries again by itself, and nothing happens twice', async () => {
  const count = async () => (await control('state', {}, 'GET')).counts.customer ?? 0;
  const patient = client({ maxNetworkRetries: 3 });
  for (const name of ['drop_after', 'drop_before', 'conflict_409', 'error_503']) {
    const before = await count();
    const made = await fault({ path: '/v1/customers', method: 'POST', fault: name, times: 2 }, () => patient.customers.create({ name }));
    assert.equal(made.name, name);
    assert.equal(await count(), before + 1, name);
  }
});
