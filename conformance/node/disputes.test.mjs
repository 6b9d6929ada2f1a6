// Disputes, and the balance transactions that all money leaves behind.
import assert from 'node:assert/strict';
import test from 'node:test';
import Stripe from 'stripe';
import { all, client, control, failure, receiver } from './sim.mjs';

const stripe = client();
const errors = Stripe.errors;

async function paid(amount = 1000) {
  const intent = await stripe.paymentIntents.create({ amount, currency: 'usd', confirm: true, payment_method: 'pm_card_visa', expand: ['latest_charge'] });
  return intent.latest_charge;
}

test('a dispute is opened, answered and won or lost, and the books agree', async () => {
  for (const [evidence, status, nets] of [['winning_evidence', 'won', [-2500, 2500]], ['losing_evidence', 'lost', [-2500]]]) {
    const charge = await paid();
    const opened = await control('disputes', { charge: charge.id, reason: 'product_not_received' });
    const dispute = await stripe.disputes.retrieve(opened.id, { expand: ['charge', 'payment_intent'] });
    assert.deepEqual([dispute.status, dispute.amount, dispute.reason, dispute.charge.id, dispute.charge.disputed, dispute.payment_intent.latest_charge], ['needs_response', 1000, 'product_not_received', charge.id, true, charge.id]);
    assert.deepEqual(dispute.balance_transactions.map((b) => [b.type, b.reporting_category, b.amount, b.fee, b.net]), [['adjustment', 'dispute', -1000, 1500, -2500]]);
    const refused = await failure(stripe.refunds.create({ charge: charge.id, amount: 10 }));
    assert.ok(refused instanceof errors.StripeInvalidRequestError, refused);
    assert.deepEqual([refused.statusCode, refused.code, refused.message], [400, 'charge_disputed', `Charge ${charge.id} has been charged back; cannot issue a refund.`]);

    const staged = await stripe.disputes.update(dispute.id, { evidence: { uncategorized_text: evidence }, submit: false });
    assert.deepEqual([staged.status, staged.evidence_details.has_evidence, staged.evidence_details.submission_count], ['needs_response', true, 0]);
    assert.equal((await stripe.disputes.update(dispute.id, { submit: true })).status, 'under_review');
    await control('clock', { advance_seconds: 60 * 24 * 3600 });
    const ended = await stripe.disputes.retrieve(dispute.id);
    assert.equal(ended.status, status);
    const late = await failure(stripe.disputes.close(dispute.id));
    assert.ok(late instanceof errors.StripeInvalidRequestError, late);
    assert.equal(late.message, `This dispute is already closed or under review: it has a status of ${status}.`);
    assert.deepEqual(ended.balance_transactions.map((b) => b.net), nets);
    const moved = await all(stripe.balanceTransactions.list({ source: dispute.id, limit: 1 }));
    assert.deepEqual(moved.map((b) => b.id).sort(), ended.balance_transactions.map((b) => b.id).sort());
  }
});

test('an inquiry takes no money until it becomes a dispute', async () => {
  const charge = await paid(2000);
  const { id } = await control('disputes', { charge: charge.id, stage: 'inquiry', amount: 500 });
  const inquiry = await stripe.disputes.retrieve(id);
  assert.deepEqual([inquiry.status, inquiry.amount, inquiry.balance_transactions, inquiry.is_charge_refundable], ['warning_needs_response', 500, [], true]);
  await control(`disputes/${id}`, { outcome: 'opened' });
  assert.deepEqual((await stripe.disputes.retrieve(id)).balance_transactions.map((b) => b.amount), [-500]);
  assert.equal((await stripe.disputes.close(id)).status, 'lost');
  assert.deepEqual((await all(stripe.disputes.list({ charge: charge.id }))).map((d) => d.id), [id]);
  const nobody = await failure(stripe.disputes.retrieve('dp_nobody'));
  assert.deepEqual([nobody.statusCode, nobody.code, nobody.param], [404, 'resource_missing', 'dispute']);
});

test('each movement of money is a balance transaction', async () => {
  const charge = await paid(5000);
  const refund = await stripe.refunds.create({ charge: charge.id, amount: 1200, expand: ['balance_transaction', 'charge'] });
  assert.deepEqual([refund.balance_transaction.amount, refund.balance_transaction.type, refund.charge.amount_refunded], [-1200, 'refund', 1200]);
  const taken = await stripe.balanceTransactions.retrieve(charge.balance_transaction, { expand: ['source'] });
  assert.deepEqual([taken.amount, taken.net, taken.source.id, taken.type, taken.status], [5000, 5000 - taken.fee, charge.id, 'charge', 'pending']);
  assert.ok(taken.fee > 0 && taken.fee === taken.fee_details.reduce((sum, f) => sum + f.amount, 0));
  const listed = await all(stripe.balanceTransactions.list({ limit: 2 }));
  assert.ok(listed.length >= 2 && new Set(listed.map((b) => b.id)).size === listed.length);
  assert.ok(listed.every((b) => b.net === b.amount - b.fee && b.currency === 'usd'));
  assert.deepEqual((await stripe.balanceTransactions.list({ type: 'refund' })).data.map((b) => b.source), [refund.id]);
  await control(`refunds/${refund.id}/fail`);
  const failed = await stripe.refunds.retrieve(refund.id, { expand: ['failure_balance_transaction'] });
  assert.deepEqual([failed.failure_balance_transaction.amount, failed.failure_balance_transaction.type], [1200, 'refund_failure']);
  const unknown = await failure(stripe.balanceTransactions.list({ payout: 'po_nobody' }));
  assert.deepEqual([unknown.statusCode, unknown.code, unknown.param], [400, 'resource_missing', 'payout']);
});

test('webhooks tell how a dispute goes', async (t) => {
  const hook = await receiver(t);
  const endpoint = await stripe.webhookEndpoints.create({ url: hook.url, enabled_events: ['charge.dispute.*'], api_version: '2023-10-16' });
  const charge = await paid();
  const { id } = await control('disputes', { charge: charge.id });
  await stripe.disputes.update(id, { metadata: { seen: 'yes' } });
  await control(`disputes/${id}`, { outcome: 'under_review' });
  await control(`disputes/${id}`, { outcome: 'partly_won', amount: 400 });
  await hook.until((got) => got.length >= 6);
  const events = hook.got.map(({ body, signature }) => stripe.webhooks.constructEvent(body, signature, endpoint.secret));
  const of = (type) => events.filter((e) => e.type === 'charge.dispute.' + type).map((e) => e.data);
  assert.deepEqual(events.map((e) => e.type.slice(15)).sort(), ['closed', 'created', 'funds_reinstated', 'funds_withdrawn', 'updated', 'updated']);
  assert.deepEqual([of('created')[0].object.status, of('closed')[0].object.status], ['needs_response', 'lost']);
  assert.deepEqual(of('updated').find((d) => d.object.status === 'needs_response').previous_attributes, { metadata: { seen: null } });
  const reviewed = of('updated').find((d) => d.object.status === 'under_review').previous_attributes;
  assert.deepEqual([reviewed.status, reviewed.evidence_details], ['needs_response', { has_evidence: false, submission_count: 0 }]);
  assert.deepEqual(of('funds_reinstated')[0].object.balance_transactions.map((b) => b.net), [-2500, 400]);
  await stripe.webhookEndpoints.del(endpoint.id);
});
