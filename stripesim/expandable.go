package stripesim

// expandableMembers are the members that Stripe's document names as expandable, by
// object: a name, and after a colon the object that it holds; [ marks a list of
// them. Where no object is named, what is asked for below it is not looked at.
var expandableMembers = map[string]string{
	"api_errors":                     "payment_intent:payment_intent payment_method:payment_method setup_intent source",
	"balance_transaction":            "fee_details source",
	"billing.meter":                  "customer_mapping default_aggregation status_transitions value_settings",
	"billing.meter_event":            "",
	"billing.meter_event_adjustment": "cancel",
	"billing.meter_event_summary":    "",
	"charge": "application application_fee balance_transaction:balance_transaction billing_details customer:customer " +
		"failure_balance_transaction:balance_transaction fraud_details invoice:invoice on_behalf_of outcome payment_intent:payment_intent " +
		"payment_method_details radar_options refunds:[refund review shipping source_transfer transfer transfer_data",
	"checkout.session": "after_expiration automatic_tax consent consent_collection currency_conversion custom_fields custom_text customer:customer " +
		"customer_details invoice:invoice invoice_creation line_items:[item payment_intent:payment_intent payment_link " +
		"payment_method_configuration_details payment_method_options phone_number_collection saved_payment_method_options setup_intent " +
		"shipping_address_collection shipping_cost shipping_details shipping_options subscription:subscription tax_id_collection " +
		"total_details",
	"coupon": "applies_to currency_options",
	"credit_note": "customer:customer customer_balance_transaction:customer_balance_transaction discount_amounts:discounts_resource_discount_amount " +
		"invoice:invoice lines:[credit_note_line_item refund:refund shipping_cost tax_amounts",
	"credit_note_line_item": "discount_amounts:discounts_resource_discount_amount tax_amounts tax_rates",
	"customer": "address cash_balance default_source discount:discount invoice_settings:invoice_setting_customer_setting shipping sources:[ " +
		"subscriptions:[subscription tax tax_ids:[ test_clock:test_helpers.test_clock",
	"customer_balance_transaction":       "credit_note:credit_note customer:customer invoice:invoice",
	"discount":                           "coupon:coupon customer:customer promotion_code",
	"discounts_resource_discount_amount": "discount:discount",
	"dispute": "balance_transactions:balance_transaction charge:charge evidence evidence_details payment_intent:payment_intent " +
		"payment_method_details",
	"event": "data request",
	"invoice": "account_tax_ids application automatic_tax charge:charge custom_fields customer:customer customer_address customer_shipping " +
		"customer_tax_ids default_payment_method:payment_method default_source default_tax_rates discount:discount discounts:discount " +
		"from_invoice:invoices_resource_from_invoice issuer last_finalization_error:api_errors latest_revision:invoice lines:[line_item " +
		"on_behalf_of payment_intent:payment_intent payment_settings quote rendering shipping_cost shipping_details status_transitions " +
		"subscription:subscription subscription_details test_clock:test_helpers.test_clock threshold_reason " +
		"total_discount_amounts:discounts_resource_discount_amount total_tax_amounts transfer_data",
	"invoice_setting_customer_setting": "custom_fields default_payment_method:payment_method rendering_options",
	"invoiceitem": "customer:customer discounts:discount invoice:invoice period price:price subscription:subscription tax_rates " +
		"test_clock:test_helpers.test_clock",
	"invoices_resource_from_invoice": "invoice:invoice",
	"item":                           "discounts:line_items_discount_amount price:price taxes",
	"line_item": "discount_amounts:discounts_resource_discount_amount discounts:discount invoice_item:invoiceitem period price:price " +
		"proration_details subscription:subscription subscription_item:subscription_item tax_amounts tax_rates",
	"line_items_discount_amount": "discount:discount",
	"payment_intent": "amount_details application automatic_payment_methods customer:customer invoice:invoice last_payment_error:api_errors " +
		"latest_charge:charge next_action on_behalf_of payment_method:payment_method payment_method_configuration_details " +
		"payment_method_options processing review shipping transfer_data",
	"payment_method": "acss_debit affirm afterpay_clearpay alipay amazon_pay au_becs_debit bacs_debit bancontact billing_details blik boleto card " +
		"card_present cashapp customer:customer customer_balance eps fpx giropay grabpay ideal interac_present klarna konbini link " +
		"mobilepay oxxo p24 paynow paypal pix promptpay radar_options revolut_pay sepa_debit sofort swish us_bank_account wechat_pay zip",
	"plan":    "product:product tiers transform_usage",
	"price":   "currency_options custom_unit_amount product:product recurring tiers transform_quantity",
	"product": "default_price:price marketing_features package_dimensions tax_code",
	"refund": "balance_transaction:balance_transaction charge:charge destination_details failure_balance_transaction:balance_transaction " +
		"next_action payment_intent:payment_intent source_transfer_reversal transfer_reversal",
	"sepa_debit_generated_from": "charge:charge setup_attempt",
	"subscription": "application automatic_tax billing_cycle_anchor_config billing_thresholds cancellation_details customer:customer " +
		"default_payment_method:payment_method default_source default_tax_rates discount:discount discounts:discount " +
		"items:[subscription_item latest_invoice:invoice on_behalf_of pause_collection payment_settings pending_invoice_item_interval " +
		"pending_setup_intent pending_update:subscriptions_resource_pending_update schedule test_clock:test_helpers.test_clock " +
		"transfer_data trial_settings",
	"subscription_item":                     "billing_thresholds discounts:discount price:price tax_rates",
	"subscriptions_resource_pending_update": "subscription_items:subscription_item",
	"test_helpers.test_clock":               "",
	"usage_record":                          "",
	"usage_record_summary":                  "period",
	"webhook_endpoint":                      "",
}
