package stripesim

import (
	"strings"
	"time"
)

// testMethod is one of Stripe's test payment methods and what becomes of a
// payment by it.
type testMethod struct {
	number  string // of the card or bank account; its end is last4
	brand   string // of a card; "" for a bank account
	country string
	funding string

	code, declineCode, message string // how a charge fails; code "" means that it does not
	chargedOnly                bool   // a card that fails to be charged, but not to be attached
	blocked                    bool   // it fails before the bank is asked
	risk                       string // risk_level, "" for normal
	authenticate               bool   // the buyer must authenticate each payment
	dispute                    string // the reason of a dispute that follows a payment
	inquiry                    bool   // the dispute is an inquiry
	refund                     string // what becomes of a refund: pending (it succeeds later), failed (later)
	available                  bool   // the money is available at once
	stuck                      bool   // a debit that never settles by itself
}

// bank tells whether a test method is a bank account, which pays days later.
func (m testMethod) bank() bool { return m.brand == "" }

// kind is Stripe's type of the payment method.
func (m testMethod) kind() string {
	if m.bank() {
		return "us_bank_account"
	}
	return "card"
}

func card(number, brand, country, funding string) testMethod {
	return testMethod{number: number, brand: brand, country: country, funding: funding}
}

func visa(number string) testMethod { return card(number, "visa", "US", "credit") }

func declining(number, code, declineCode, message string) testMethod {
	m := visa(number)
	m.code, m.declineCode, m.message = code, declineCode, message
	return m
}

func but(m testMethod, change func(*testMethod)) testMethod {
	change(&m)
	return m
}

const (
	declined             = "Your card was declined."
	insufficientFunds    = "Your card has insufficient funds."
	authenticationNeeded = "Your card was declined. This transaction requires authentication."
)

// testCards are the cards of Stripe's page on testing, by the end of their names:
// pm_card_visa and tok_visa are the same card.
var testCards = map[string]testMethod{
	"visa":               visa("4242424242424242"),
	"visa_debit":         card("4000056655665556", "visa", "US", "debit"),
	"mastercard":         card("5555555555554444", "mastercard", "US", "credit"),
	"mastercard_debit":   card("5200828282828210", "mastercard", "US", "debit"),
	"mastercard_prepaid": card("5105105105105100", "mastercard", "US", "prepaid"),
	"amex":               card("378282246310005", "amex", "US", "credit"),
	"discover":           card("6011111111111117", "discover", "US", "credit"),
	"diners":             card("3056930009020004", "diners", "US", "credit"),
	"jcb":                card("3566002020360505", "jcb", "JP", "credit"),
	"unionpay":           card("6200000000000005", "unionpay", "CN", "credit"),
	"us":                 visa("4242424242424242"),
	"at":                 card("4000000400000008", "visa", "AT", "credit"),
	"de":                 card("4000002760000016", "visa", "DE", "credit"),
	"fr":                 card("4000002500000003", "visa", "FR", "credit"),
	"gb":                 card("4000008260000000", "visa", "GB", "credit"),
	"jp":                 card("4000003920000003", "visa", "JP", "credit"),

	"chargeDeclined":                      declining("4000000000000002", "card_declined", "generic_decline", declined),
	"chargeDeclinedInsufficientFunds":     declining("4000000000009995", "card_declined", "insufficient_funds", insufficientFunds),
	"chargeDeclinedLostCard":              declining("4000000000009987", "card_declined", "lost_card", declined),
	"chargeDeclinedStolenCard":            declining("4000000000009979", "card_declined", "stolen_card", declined),
	"chargeDeclinedExpiredCard":           declining("4000000000000069", "expired_card", "expired_card", "Your card has expired."),
	"chargeDeclinedIncorrectCvc":          declining("4000000000000127", "incorrect_cvc", "incorrect_cvc", "Your card's security code is incorrect."),
	"chargeDeclinedProcessingError":       declining("4000000000000119", "processing_error", "processing_error", "An error occurred while processing your card. Try again in a little bit."),
	"chargeDeclinedVelocityLimitExceeded": declining("4000000000006975", "card_declined", "card_velocity_exceeded", "Your card was declined for making repeated attempts too frequently or exceeding its amount limit."),
	"chargeDeclinedFraudulent":            but(declining("4100000000000019", "card_declined", "fraudulent", declined), func(m *testMethod) { m.blocked, m.risk = true, "highest" }),
	"radarBlock":                          but(declining("4100000000000019", "card_declined", "fraudulent", declined), func(m *testMethod) { m.blocked, m.risk = true, "highest" }),
	"chargeCustomerFail":                  but(declining("4000000000000341", "card_declined", "generic_decline", declined), func(m *testMethod) { m.chargedOnly = true }),
	"riskLevelHighest":                    but(visa("4000000000004954"), func(m *testMethod) { m.risk = "highest" }),
	"riskLevelElevated":                   but(visa("4000000000009235"), func(m *testMethod) { m.risk = "elevated" }),

	"createDispute":                   but(visa("4000000000000259"), func(m *testMethod) { m.dispute = "fraudulent" }),
	"createDisputeProductNotReceived": but(visa("4000000000002685"), func(m *testMethod) { m.dispute = "product_not_received" }),
	"createDisputeInquiry":            but(visa("4000000000001976"), func(m *testMethod) { m.dispute, m.inquiry = "fraudulent", true }),
	"pendingRefund":                   but(visa("4000000000007726"), func(m *testMethod) { m.refund = "pending" }),
	"refundFail":                      but(visa("4000000000005126"), func(m *testMethod) { m.refund = "failed" }),
	"bypassPending":                   but(visa("4000000000000077"), func(m *testMethod) { m.available = true }),

	"authenticationRequired": but(visa("4000002760003184"), func(m *testMethod) { m.authenticate = true }),
	"threeDSecure2Required":  but(visa("4000000000003220"), func(m *testMethod) { m.authenticate = true }),
	"authenticationRequiredChargeDeclinedInsufficientFunds": but(
		declining("4000008260003178", "card_declined", "insufficient_funds", insufficientFunds),
		func(m *testMethod) { m.authenticate, m.chargedOnly = true, true },
	),
}

func debit(number, code, message string) testMethod {
	return testMethod{number: number, country: "US", code: code, message: message, chargedOnly: true}
}

// testBanks are Stripe's test bank accounts, by the end of pm_usBankAccount_….
var testBanks = map[string]testMethod{
	"success":            debit("000123456789", "", ""),
	"accountClosed":      debit("000111111113", "account_closed", "The customer's bank account has been closed."),
	"noAccount":          debit("000111111116", "no_account", "The customer's bank account could not be located."),
	"insufficientFunds":  debit("000222222227", "insufficient_funds", "The customer's account has insufficient funds to cover this payment."),
	"debitNotAuthorized": debit("000333333335", "debit_not_authorized", "The customer has notified their bank that this payment was unauthorized."),
	"invalidCurrency":    debit("000444444440", "invalid_currency", "The customer's bank account does not take this currency."),
	"processing":         but(debit("000000000009", "", ""), func(m *testMethod) { m.stuck = true }),
	"dispute":            but(debit("000555555559", "", ""), func(m *testMethod) { m.dispute = "bank_cannot_process" }),
}

// testMethodOf gives the test payment method of a name such as pm_card_visa,
// tok_visa or pm_usBankAccount_success. Cards that decline are known by their older
// and by their newer name: pm_card_chargeDeclined and pm_card_visa_chargeDeclined.
func testMethodOf(name string) (testMethod, bool) {
	if bank, ok := strings.CutPrefix(name, "pm_usBankAccount_"); ok {
		m, known := testBanks[bank]
		return m, known
	}
	end, ok := strings.CutPrefix(name, "pm_card_")
	if !ok {
		end, ok = strings.CutPrefix(name, "tok_")
	}
	if !ok {
		return testMethod{}, false
	}
	if m, known := testCards[end]; known {
		return m, true
	}
	m, known := testCards[strings.TrimPrefix(end, "visa_")]
	return m, known
}

// testMethodNumbered gives the name of the test method with a number.
func testMethodNumbered(number string) (name string, known bool) {
	for end, m := range testCards {
		if m.number == number && (name == "" || "pm_card_"+end < name) {
			name = "pm_card_" + end
		}
	}
	for end, m := range testBanks {
		if m.number == number {
			name = "pm_usBankAccount_" + end
		}
	}
	return name, name != ""
}

// actsAs gives the test method that stands behind a payment method.
func actsAs(pm object) testMethod {
	m, known := testMethodOf(text(pm, "_acts"))
	if !known {
		return testCards["visa"]
	}
	return m
}

// luhn tells whether a card number's check digit is right.
func luhn(number string) bool {
	sum := 0
	for i := range len(number) {
		digit := int(number[len(number)-1-i]) - '0'
		if digit < 0 || digit > 9 {
			return false
		}
		if i%2 == 1 {
			if digit *= 2; digit > 9 {
				digit -= 9
			}
		}
		sum += digit
	}
	return len(number) >= 12 && len(number) <= 19 && sum%10 == 0
}

// cardError is the refusal of a card. It comes of executing the call: an idempotency
// key keeps it.
func cardError(code, declineCode, param, message string) *apiError {
	e := &apiError{status: 402, typ: "card_error", code: code, param: param, message: message, extra: object{}, stored: true}
	if declineCode != "" {
		e.extra["decline_code"] = declineCode
	}
	return e
}

// checkCard gives the name of the test method that a card's number, or its token,
// stands for.
func (s *Server) checkCard(p params) (name string, err *apiError) {
	if token := p.text("token"); token != "" {
		m, known := testMethodOf(token)
		if !known || !strings.HasPrefix(token, "tok_") || m.bank() {
			return "", missing("token", token, "card[token]")
		}
		return token, nil
	}
	for _, member := range []string{"number", "exp_month", "exp_year"} {
		if !p.has(member) {
			return "", invalid("card["+member+"]", "parameter_missing", "Missing required param: card[%s].", member)
		}
	}
	now := time.Unix(s.now(), 0).UTC()
	month, year := p.number("exp_month"), p.number("exp_year")
	if year < 100 {
		year += int64(now.Year() / 100 * 100)
	}
	switch {
	case !luhn(p.text("number")):
		return "", cardError("incorrect_number", "", "number", "Your card number is incorrect.")
	case month < 1 || month > 12:
		return "", cardError("invalid_expiry_month", "", "exp_month", "Your card's expiration month is invalid.")
	case year < int64(now.Year()) || year > int64(now.Year())+50:
		return "", cardError("invalid_expiry_year", "", "exp_year", "Your card's expiration year is invalid.")
	case year == int64(now.Year()) && month < int64(now.Month()):
		return "", cardError("invalid_expiry_month", "", "exp_month", "Your card's expiration month is invalid.")
	}
	name, known := testMethodNumbered(p.text("number"))
	if !known || actsAs(object{"_acts": name}).bank() {
		return "", cardError("card_declined", "test_mode_live_card", "", "Your card was declined. Your request was in test mode, but used a non test (live) card. For a list of valid test cards, visit: https://stripe.com/docs/testing.")
	}
	return name, nil
}
