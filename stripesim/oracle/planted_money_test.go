package oracle

import (
	"encoding/json"
	"strings"
)

// ending finds executed calls whose path ends so.
func ending(call, end string) func(*entry) bool {
	begins := executed(call)
	return func(e *entry) bool { return begins(e) && strings.HasSuffix(e.Path, end) }
}

// given narrows a search to calls with a parameter of one of some values, or of any.
func given(finds func(*entry) bool, name string, values ...string) func(*entry) bool {
	return func(e *entry) bool {
		return finds(e) && e.Form.Has(name) && (len(values) == 0 || strings.Contains(" "+strings.Join(values, " ")+" ", " "+e.text(name)+" "))
	}
}

// moneyFalsifications are those of payment methods, debits, captures, refunds and disputes.
var moneyFalsifications = map[string]falsification{
	"a payment method that nobody made": {ending("POST /v1/payment_methods", "/payment_methods"), drop},
	"a method that nobody attached":     {ending("POST /v1/payment_methods", "/attach"), drop},
	"a method that nobody detached":     {ending("POST /v1/payment_methods", "/detach"), drop},
	"a capture that nobody asked for":   {ending("POST /v1/payment_intents", "/capture"), drop},
	"another amount that was captured":  {given(ending("POST /v1/payment_intents", "/capture"), "amount_to_capture"), with("amount_to_capture", "1")},
	"an intent that nobody cancelled":   {ending("POST /v1/payment_intents", "/cancel"), drop},
	"an intent that nobody confirmed":   {ending("POST /v1/payment_intents", "/confirm"), drop},
	"another card":                      {given(executed("POST /v1/payment_intents"), "payment_method", "pm_card_visa"), with("payment_method", "pm_card_bypassPending")},
	"a buyer who authenticated":         {ending(control+" /v1/payment_intents", "/authenticate"), drop},
	"a debit that was settled":          {ending(control+" /v1/payment_intents", "/settle"), drop},
	"another end of a debit":            {given(ending(control+" /v1/payment_intents", "/settle"), "outcome", "succeeded"), with("outcome", "failed")},
	"a refund that was cancelled":       {ending("POST /v1/refunds", "/cancel"), drop},
	"a refund that succeeded at last":   {ending(control+" /v1/refunds", "/succeed"), drop},
	"a refund that waits":               {given(executed("POST /v1/refunds"), "metadata[sim_status]", "pending"), with("metadata[sim_status]", "requires_action")},
	"a dispute that nobody opened":      {ending(control+" /v1/disputes", "/disputes"), drop},
	"another amount of a dispute":       {given(ending(control+" /v1/disputes", "/disputes"), "amount", "0"), with("amount", "1")},
	"a dispute that is an inquiry":      {given(ending(control+" /v1/disputes", "/disputes"), "stage", "opened"), with("stage", "inquiry")},
	"another end of a dispute":          {given(executed(control+" /v1/disputes/"), "outcome", "won"), with("outcome", "lost")},
	"a dispute that was partly won":     {given(executed(control+" /v1/disputes/"), "outcome", "partly_won"), drop},
	"another part of a dispute":         {given(executed(control+" /v1/disputes/"), "outcome", "partly_won"), with("amount", "1")},
	"evidence that nobody sent":         {given(executed("POST /v1/disputes/"), "evidence[uncategorized_text]", "winning_evidence"), drop},
	"a dispute that nobody closed":      {ending("POST /v1/disputes/", "/close"), drop},
}

// first changes the first object of a page.
func first(change func(map[string]any)) func(map[string]any) {
	return func(page map[string]any) {
		if data, _ := page["data"].([]any); len(data) > 0 {
			object, _ := data[0].(map[string]any)
			change(object)
		}
	}
}

// set changes a member of the first object of a page.
func set(name string, value any) func(map[string]any) {
	return first(func(o map[string]any) { o[name] = value })
}

// lost takes the first object out of a page.
func lost(page map[string]any) {
	if data, _ := page["data"].([]any); len(data) > 0 {
		page["data"] = data[1:]
	}
}

// purse changes the first amount of a balance.
func purse(status string, change func(map[string]any)) func(map[string]any) {
	return func(balance map[string]any) {
		if amounts, _ := balance[status].([]any); len(amounts) > 0 {
			amount, _ := amounts[0].(map[string]any)
			change(amount)
		}
	}
}

// moneyLies are what a simulator might say of money that is not so.
func moneyLies() map[string]liar {
	odd := json.Number("123456789")
	return map[string]liar{
		"a charge's dispute":          {path: "/v1/charges", change: first(func(o map[string]any) { o["disputed"] = o["disputed"] != true })},
		"a charge's capture":          {path: "/v1/charges", change: first(func(o map[string]any) { o["captured"] = o["captured"] != true })},
		"a charge's transaction":      {path: "/v1/charges", change: set("balance_transaction", "txn_planted")},
		"an intent's charge":          {path: "/v1/payment_intents", change: set("latest_charge", "ch_planted")},
		"an intent's amount":          {path: "/v1/payment_intents", change: set("amount_received", odd)},
		"an intent's method":          {path: "/v1/payment_intents", change: set("payment_method", "pm_planted")},
		"a refund's charge":           {path: "/v1/refunds", change: set("charge", "ch_planted")},
		"a refund's failure":          {path: "/v1/refunds", change: set("failure_balance_transaction", "txn_planted")},
		"a lost refund":               {path: "/v1/refunds", change: lost},
		"a dispute's status":          {path: "/v1/disputes", change: set("status", "planted")},
		"a dispute's amount":          {path: "/v1/disputes", change: set("amount", odd)},
		"a dispute's transactions":    {path: "/v1/disputes", change: set("balance_transactions", []any{map[string]any{"id": "txn_planted"}})},
		"a dispute's evidence":        {path: "/v1/disputes", change: set("evidence_details", map[string]any{})},
		"a lost dispute":              {path: "/v1/disputes", change: lost},
		"a transaction's amount":      {path: "/v1/balance_transactions", change: set("amount", odd)},
		"a transaction's fee":         {path: "/v1/balance_transactions", change: set("fee", odd)},
		"a transaction's net":         {path: "/v1/balance_transactions", change: set("net", odd)},
		"a transaction's source":      {path: "/v1/balance_transactions", change: set("source", "ch_planted")},
		"a transaction's status":      {path: "/v1/balance_transactions", change: set("status", "planted")},
		"a transaction's currency":    {path: "/v1/balance_transactions", change: set("currency", "xxx")},
		"a transaction's time":        {path: "/v1/balance_transactions", change: set("available_on", odd)},
		"a lost transaction":          {path: "/v1/balance_transactions", change: lost},
		"what is available":           {path: "/v1/balance", change: purse("available", func(o map[string]any) { o["amount"] = odd })},
		"what is pending":             {path: "/v1/balance", change: purse("pending", func(o map[string]any) { o["amount"] = odd })},
		"what came from cards":        {path: "/v1/balance", change: purse("available", func(o map[string]any) { o["source_types"] = map[string]any{"card": odd} })},
		"a balance without an amount": {path: "/v1/balance", change: func(o map[string]any) { delete(o, "available") }},
		"a method's customer":         {path: "/v1/payment_methods", change: set("customer", "cus_planted")},
		"a method's type":             {path: "/v1/payment_methods", change: set("type", "planted")},
		"a lost method":               {path: "/v1/payment_methods", change: lost},
	}
}
