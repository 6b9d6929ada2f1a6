// Webhooks: the library verifies what a real receiver in Node got from the simulator.
import assert from 'node:assert/strict';
import test from 'node:test';
import Stripe from 'stripe';
import { client, control, failure, receiver } from './sim.mjs';

const stripe = client();

test('each webhook bears a signature that the library accepts', async (t) => {
  const hook = await receiver(t);
  const endpoint = await stripe.webhookEndpoints.create({ url: hook.url, enabled_events: ['customer.*', 'charge.refunded'], api_version: '2023-10-16' });
  assert.match(endpoint.secret, /^whsec_/);
  assert.equal((await stripe.webhookEndpoints.retrieve(endpoint.id)).secret, undefined);
  const customer = await stripe.customers.create({ name: 'Ünïcode & Co' });
  await stripe.products.create({ name: 'nobody wants to know' });
  const intent = await stripe.paymentIntents.create({ amount: 500, currency: 'usd', confirm: true, payment_method: 'pm_card_visa' });
  await stripe.refunds.create({ payment_intent: intent.id });
  await hook.until((got) => got.length >= 2);

  const events = hook.got.map(({ body, signature }) => stripe.webhooks.constructEvent(body, signature, endpoint.secret));
  assert.deepEqual(events.map((e) => e.type).sort(), ['charge.refunded', 'customer.created']);
  assert.equal(events.find((e) => e.type === 'customer.created').data.object.name, 'Ünïcode & Co');
  assert.equal(events.find((e) => e.type === 'customer.created').data.object.id, customer.id);
  assert.match(hook.got[0].headers['user-agent'], /^Stripe\/1\.0/);

  const { body, signature } = hook.got[0];
  const refuse = (b, s, secret) => assert.throws(() => stripe.webhooks.constructEvent(b, s, secret), Stripe.errors.StripeSignatureVerificationError);
  refuse(Buffer.concat([body, Buffer.from(' ')]), signature, endpoint.secret);
  refuse(JSON.stringify(JSON.parse(body)), signature, endpoint.secret);
  refuse(body, signature, 'whsec_other');
  refuse(body, signature.replace(/v1=[0-9a-f]+,?/, ''), endpoint.secret);
  await stripe.webhookEndpoints.del(endpoint.id);
});

test('two secrets sign while one is rolled', async (t) => {
  const hook = await receiver(t);
  const endpoint = await stripe.webhookEndpoints.create({ url: hook.url, enabled_events: ['customer.created'] });
  const { secret } = await control(`webhook_endpoints/${endpoint.id}/roll_secret`);
  await stripe.customers.create({ name: 'rolled' });
  await hook.until((got) => got.length >= 1);
  const { body, signature } = hook.got[0];
  for (const s of [endpoint.secret, secret]) assert.equal(stripe.webhooks.constructEvent(body, signature, s).type, 'customer.created');
  await stripe.webhookEndpoints.del(endpoint.id);
});

test('a receiver that fails is tried again, with a new signature', async (t) => {
  const hook = await receiver(t, (n) => (n === 1 ? 500 : n === 2 ? 302 : 204));
  const endpoint = await stripe.webhookEndpoints.create({ url: hook.url, enabled_events: ['product.created'] });
  await stripe.products.create({ name: 'tried' });
  for (const n of [1, 2]) {
    await hook.until((got) => got.length >= n);
    await failedTimes(n);
    await control('clock', { advance_seconds: 3600 });
  }
  await hook.until((got) => got.length >= 3);
  const events = hook.got.map(({ body, signature }) => stripe.webhooks.constructEvent(body, signature, endpoint.secret, 24 * 3600));
  assert.equal(new Set(events.map((e) => e.id)).size, 1);
  assert.equal(new Set(hook.got.map((g) => /t=(\d+)/.exec(g.signature)[1])).size, 3);
  await stripe.webhookEndpoints.del(endpoint.id);
});

// failedTimes waits until the simulator has noted a failed try.
async function failedTimes(n) {
  for (let i = 0; i < 500; i++) {
    if ((await control('state', {}, 'GET')).webhooks.failed >= n) return;
    await new Promise((done) => setTimeout(done, 10));
  }
  assert.fail('the failed try was not noted');
}

test('lost and doubled webhooks', async (t) => {
  const hook = await receiver(t);
  const endpoint = await stripe.webhookEndpoints.create({ url: hook.url, enabled_events: ['price.created', 'product.created'] });
  await control('webhooks', { lose: { types: ['product.created'], times: 1 }, duplicate: { types: ['price.created'], times: 1 } });
  const product = await stripe.products.create({ name: 'lost' });
  await stripe.prices.create({ product: product.id, currency: 'usd', unit_amount: 1 });
  await hook.until((got) => got.length >= 2);
  const events = hook.got.map(({ body, signature }) => stripe.webhooks.constructEvent(body, signature, endpoint.secret));
  assert.deepEqual([events[0].id, events[0].type], [events[1].id, 'price.created']);
  const [lost] = (await stripe.events.list({ type: 'product.created', limit: 1 })).data;
  assert.equal(lost.data.object.id, product.id);
  await control('webhooks/redeliver', { event: lost.id });
  await hook.until((got) => got.length >= 3);
  assert.equal((await failure(stripe.webhookEndpoints.create({ url: 'nowhere', enabled_events: ['*'] }))).code, 'url_invalid');
});
