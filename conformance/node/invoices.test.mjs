// Invoices by hand: items, finalization, payment, failure, credit notes and balances.
import assert from 'node:assert/strict';
import test from 'node:test';
import Stripe from 'stripe';
import { all, client, control, failure, receiver } from './sim.mjs';

const stripe = client();
const errors = Stripe.errors;

// draft is an invoice with two items.
async function draft(customer) {
  const invoice = await stripe.invoices.create({ customer: customer.id, auto_advance: false, metadata: { order: '7' } });
  await stripe.invoiceItems.create({ customer: customer.id, invoice: invoice.id, amount: 700, currency: 'usd', description: 'hours' });
  const product = await stripe.products.create({ name: 'Disks' });
  const price = await stripe.prices.create({ product: product.id, currency: 'usd', unit_amount: 150 });
  await stripe.invoiceItems.create({ customer: customer.id, invoice: invoice.id, price: price.id, quantity: 2 });
  return invoice;
}

const payer = () => stripe.customers.create({ name: 'Acme', payment_method: 'pm_card_visa', invoice_settings: { default_payment_method: 'pm_card_visa' } });

test('an invoice is drawn up, finalized, paid and credited', async () => {
  const customer = await payer();
  const invoice = await draft(customer);
  const lines = await all(stripe.invoices.listLineItems(invoice.id, { limit: 1 }));
  assert.deepEqual(lines.map((l) => [l.amount, l.quantity, l.description]), [[700, 1, 'hours'], [300, 2, 'Disks']]);
  const open = await stripe.invoices.finalizeInvoice(invoice.id, { expand: ['payment_intent'] });
  assert.deepEqual([open.status, open.total, open.amount_remaining, open.payment_intent.status, open.metadata.order], ['open', 1000, 1000, 'requires_payment_method', '7']);
  const note = await stripe.creditNotes.create({ invoice: invoice.id, amount: 100, reason: 'order_change' });
  assert.deepEqual([note.type, note.status, note.total], ['pre_payment', 'issued', 100]);
  const dropped = await stripe.creditNotes.create({ invoice: invoice.id, amount: 50 });
  assert.equal((await stripe.creditNotes.voidCreditNote(dropped.id)).status, 'void');
  const paid = await stripe.invoices.pay(invoice.id, { expand: ['charge'] });
  assert.deepEqual([paid.status, paid.amount_paid, paid.charge.amount, paid.pre_payment_credit_notes_amount], ['paid', 900, 900, 100]);

  const back = await stripe.creditNotes.create({ invoice: invoice.id, lines: [{ type: 'invoice_line_item', invoice_line_item: lines[1].id, quantity: 1 }], refund_amount: 100, credit_amount: 50 });
  assert.deepEqual([back.type, back.amount, back.refund !== null], ['post_payment', 150, true]);
  assert.deepEqual((await all(stripe.creditNotes.listLineItems(back.id))).map((l) => [l.amount, l.quantity, l.invoice_line_item]), [[150, 1, lines[1].id]]);
  assert.equal((await stripe.refunds.retrieve(back.refund)).amount, 100);
  assert.equal((await stripe.customers.retrieve(customer.id)).balance, -50);
  assert.deepEqual((await all(stripe.customers.listBalanceTransactions(customer.id))).map((b) => [b.type, b.amount, b.credit_note]), [['credit_note', -50, back.id]]);
  assert.deepEqual((await all(stripe.creditNotes.list({ invoice: invoice.id, limit: 1 }))).map((n) => n.id), [back.id, dropped.id, note.id]);
  assert.equal((await stripe.invoices.retrieve(invoice.id)).post_payment_credit_notes_amount, 150);

  // The credit pays a part of the next invoice.
  const next = await draft(customer);
  assert.deepEqual([(await stripe.invoices.pay(next.id)).amount_paid, (await stripe.customers.retrieve(customer.id)).balance], [950, 0]);
});

test('what is refused of invoices has its class and its words', async () => {
  const customer = await payer();
  const invoice = await draft(customer);
  const refused = async (call, status, code, param, message) => {
    const error = await failure(call());
    assert.ok(error instanceof errors.StripeInvalidRequestError, error);
    assert.deepEqual([error.statusCode, error.code, error.param, error.message], [status, code, param, message]);
  };
  await refused(() => stripe.invoices.retrieve('in_nobody'), 404, 'resource_missing', 'invoice', "No such invoice: 'in_nobody'");
  await refused(() => stripe.invoices.create({ customer: 'cus_nobody' }), 400, 'resource_missing', 'customer', "No such customer: 'cus_nobody'");
  await refused(() => stripe.creditNotes.create({ invoice: 'in_nobody', amount: 5 }), 400, 'resource_missing', 'invoice', "No such invoice: 'in_nobody'");
  await refused(() => stripe.creditNotes.create({ invoice: invoice.id, amount: 5 }), 400, undefined, 'invoice',
    'A credit note can only be created for an invoice that is open or paid. This invoice has a status of draft.');
  await refused(() => stripe.invoices.voidInvoice(invoice.id), 400, undefined, undefined, "You can only pass in open invoices. This invoice isn't open.");
  await stripe.invoices.finalizeInvoice(invoice.id);
  await refused(() => stripe.invoices.finalizeInvoice(invoice.id), 400, undefined, undefined, "This invoice is already finalized, you can't re-finalize a non-draft invoice.");
  await refused(() => stripe.invoices.del(invoice.id), 400, undefined, undefined, 'You can only delete draft invoices.');
  await refused(() => stripe.invoices.update(invoice.id, { description: 'late' }), 400, undefined, 'description', "Finalized invoices can't be updated in this way");
  await refused(() => stripe.creditNotes.create({ invoice: invoice.id, amount: 1001 }), 400, undefined, 'amount',
    'The credit note amount ($10.01) is greater than the amount remaining on the invoice ($10.00).');

  const declined = await failure(stripe.invoices.pay(invoice.id, { payment_method: 'pm_card_chargeDeclined' }));
  assert.ok(declined instanceof errors.StripeCardError, declined);
  assert.deepEqual([declined.statusCode, declined.code, declined.decline_code, declined.payment_intent.status], [402, 'card_declined', 'generic_decline', 'requires_payment_method']);
  assert.equal((await stripe.invoices.retrieve(invoice.id)).status, 'open');
  await stripe.invoices.pay(invoice.id);
  await refused(() => stripe.invoices.pay(invoice.id), 400, undefined, undefined, 'Invoice is already paid');
  await refused(() => stripe.invoices.voidInvoice(invoice.id), 400, undefined, undefined, 'Invoices with `paid` payments cannot be voided.');
  await refused(() => stripe.invoices.retrieveUpcoming({ customer: customer.id }), 404, 'invoice_upcoming_none', undefined, `No upcoming invoices for customer: ${customer.id}`);
});

test('a key pays and credits once', async () => {
  const customer = await payer();
  const invoice = await draft(customer);
  await stripe.invoices.finalizeInvoice(invoice.id);
  const counts = async () => (await control('state', {}, 'GET')).counts;
  for (const [name, call] of [
    ['pay', (options) => stripe.invoices.pay(invoice.id, {}, options)],
    ['credit', (options) => stripe.creditNotes.create({ invoice: invoice.id, amount: 300, refund_amount: 200, credit_amount: 100 }, options)],
  ]) {
    const first = await call({ idempotencyKey: name });
    const before = await counts();
    const second = await call({ idempotencyKey: name });
    assert.deepEqual([second.id, second.lastResponse.headers['idempotent-replayed']], [first.id, 'true']);
    assert.deepEqual(await counts(), before);
  }
});

test('webhooks of invoices say what was before', async (t) => {
  const hook = await receiver(t);
  const customer = await payer();
  const endpoint = await stripe.webhookEndpoints.create({ url: hook.url, enabled_events: ['invoice.updated', 'invoice.finalized', 'invoice.paid', 'invoice.payment_failed', 'credit_note.*'], api_version: '2023-10-16' });
  const invoice = await stripe.invoices.create({ customer: customer.id, description: 'first' });
  await stripe.invoices.update(invoice.id, { description: 'second', metadata: { a: 'b' } });
  await stripe.invoiceItems.create({ customer: customer.id, invoice: invoice.id, amount: 500, currency: 'usd' });
  await stripe.invoices.finalizeInvoice(invoice.id, { auto_advance: false });
  await failure(stripe.invoices.pay(invoice.id, { payment_method: 'pm_card_chargeDeclined' }));
  await stripe.invoices.pay(invoice.id);
  const note = await stripe.creditNotes.create({ invoice: invoice.id, amount: 500, out_of_band_amount: 500 });
  await stripe.creditNotes.update(note.id, { memo: 'by cash' });
  const types = () => hook.got.map(({ body, signature }) => stripe.webhooks.constructEvent(body, signature, endpoint.secret));
  await hook.until(() => types().some((e) => e.type === 'credit_note.updated') && types().some((e) => e.type === 'invoice.paid') && types().some((e) => e.type === 'credit_note.created'));
  const events = types();
  const of = (type) => events.filter((e) => e.type === type).map((e) => e.data);
  assert.deepEqual(of('invoice.updated').find((d) => d.object.description === 'second' && d.previous_attributes.description).previous_attributes, { description: 'first', metadata: { a: null } });
  assert.deepEqual(of('credit_note.updated').map((d) => [d.object.memo, d.previous_attributes]), [['by cash', { memo: null }]]);
  assert.deepEqual([of('invoice.finalized')[0].object.status, of('invoice.payment_failed')[0].object.attempted, of('invoice.paid')[0].object.amount_paid], ['open', true, 500]);
  assert.deepEqual([of('invoice.finalized').length, of('invoice.payment_failed').length, of('invoice.paid').length, of('credit_note.created').length], [1, 1, 1, 1]);
  assert.ok(events.every((e) => e.data.object.id === invoice.id || e.data.object.id === note.id));
  await stripe.webhookEndpoints.del(endpoint.id);
});
