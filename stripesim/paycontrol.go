package stripesim

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// refundFailures are the reasons for which a refund fails at Stripe.
var refundFailures = []string{"lost_or_stolen_card", "expired_or_canceled_card", "charge_for_pending_refund_disputed", "insufficient_funds", "declined", "merchant_request", "unknown"}

// routePaymentControl mounts what the buyer, the bank and the network do.
func (s *Server) routePaymentControl() {
	s.control("POST /_sim/disputes", func(r *http.Request) (any, error) {
		var q Dispute
		if err := decodeControl(r, &q); err != nil {
			return nil, err
		}
		id, err := s.OpenDispute(q)
		return s.show("dispute", id), err
	})
	s.control("POST /_sim/disputes/{id}", func(r *http.Request) (any, error) {
		var q struct {
			Outcome string `json:"outcome"`
			Amount  int64  `json:"amount"`
		}
		if err := decodeControl(r, &q); err != nil {
			return nil, err
		}
		err := s.ResolveDispute(r.PathValue("id"), q.Outcome, q.Amount)
		return s.show("dispute", r.PathValue("id")), err
	})
	intent := func(do func(id, outcome string) error) func(r *http.Request) (any, error) {
		return func(r *http.Request) (any, error) {
			var q struct {
				Outcome string `json:"outcome"`
			}
			if err := decodeControl(r, &q); err != nil {
				return nil, err
			}
			err := do(r.PathValue("id"), q.Outcome)
			return s.show("payment_intent", r.PathValue("id")), err
		}
	}
	s.control("POST /_sim/payment_intents/{id}/authenticate", intent(s.AuthenticatePayment))
	s.control("POST /_sim/payment_intents/{id}/settle", intent(s.SettlePayment))
}

// Dispute says what a buyer disputes.
type Dispute struct {
	Charge string `json:"charge"`
	Reason string `json:"reason"` // one of Stripe's; "" is fraudulent
	Stage  string `json:"stage"`  // inquiry, which moves no money, or opened; "" is opened
	Amount int64  `json:"amount"` // in minor units; 0 is all that was captured and neither refunded nor disputed
}

// OpenDispute lets the buyer of a charge dispute it, and gives the dispute's id.
// Pending refunds of a charge that is charged back fail.
func (s *Server) OpenDispute(d Dispute) (id string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.happen()
	charge, missing := s.find("charge", d.Charge, "charge")
	if missing != nil {
		return "", missing
	}
	if d.Reason == "" {
		d.Reason = "fraudulent"
	}
	if d.Stage == "" {
		d.Stage = "opened"
	}
	most := s.disputable(charge)
	if d.Amount == 0 {
		d.Amount = min(most, number(charge, "amount_captured")-s.refunded(d.Charge)+number(charge, "amount")-number(charge, "amount_captured"))
	}
	switch {
	case !slices.Contains(disputeReasons, d.Reason):
		return "", fmt.Errorf("reason %q is unknown; it is one of %s", d.Reason, strings.Join(disputeReasons, ", "))
	case d.Stage != "inquiry" && d.Stage != "opened":
		return "", fmt.Errorf("stage %q is unknown; it is one of inquiry, opened", d.Stage)
	case text(charge, "status") != "succeeded" || !flag(charge, "captured"):
		return "", fmt.Errorf("charge %s is %s and captured is %t: only money that was taken can be disputed", d.Charge, text(charge, "status"), flag(charge, "captured"))
	case d.Amount < 1 || d.Amount > most:
		return "", fmt.Errorf("amount %d cannot be disputed: of charge %s there is %d left", d.Amount, d.Charge, most)
	}
	return text(s.openDispute(charge, d.Reason, d.Stage, d.Amount), "id"), nil
}

// disputeSteps says from which states a dispute takes an outcome.
var disputeSteps = map[string][]string{
	"opened":         {"warning_needs_response", "warning_under_review"},
	"warning_closed": {"warning_needs_response", "warning_under_review"},
	"under_review":   {"needs_response", "warning_needs_response"},
	"won":            {"needs_response", "under_review"},
	"lost":           {"needs_response", "under_review"},
	"partly_won":     {"needs_response", "under_review"},
}

// ResolveDispute takes a dispute on: opened (an inquiry becomes a dispute and the
// money is withdrawn), under_review, won, lost, partly_won (an amount in minor units
// comes back and the status is lost), or warning_closed (an inquiry comes to
// nothing). The amount is of partly_won alone.
func (s *Server) ResolveDispute(id, outcome string, amount int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.happen()
	o, err := s.find("dispute", id, "dispute")
	if err != nil {
		return err
	}
	from, known := disputeSteps[outcome]
	switch status := text(o, "status"); {
	case !known:
		return fmt.Errorf("outcome %q is unknown; it is one of opened, under_review, won, lost, partly_won, warning_closed", outcome)
	case !slices.Contains(from, status):
		return fmt.Errorf("dispute %s has a status of %s: %s takes one of %s", id, status, outcome, strings.Join(from, ", "))
	case outcome == "partly_won" && (amount < 1 || amount >= number(o, "amount")):
		return fmt.Errorf("partly_won takes an amount from 1 to %d, the dispute's amount less 1", number(o, "amount")-1)
	case outcome != "partly_won" && amount != 0:
		return fmt.Errorf("%s takes no amount: only partly_won does", outcome)
	}
	switch outcome {
	case "opened":
		s.escalate(o)
	case "under_review":
		s.setAlarm("dispute", o, 0) // whoever says so says how it ends, too
		status := map[string]string{"needs_response": "under_review", "warning_needs_response": "warning_under_review"}[text(o, "status")]
		details := laidOver(child(o, "evidence_details"), object{"has_evidence": true, "submission_count": int64(1)})
		s.raise(nil, "charge.dispute.updated", o, s.change("dispute", o, object{"status": status, "evidence_details": details}))
	case "won":
		s.reinstate(o, "won", number(o, "amount"))
	case "partly_won":
		s.reinstate(o, "lost", amount)
	default:
		s.closeDispute(nil, o, outcome)
	}
	return nil
}

// AuthenticatePayment ends the wait of a payment intent that requires_action: the
// buyer succeeded to authenticate, or failed.
func (s *Server) AuthenticatePayment(intent, outcome string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.happen()
	pi, err := s.find("payment_intent", intent, "intent")
	if err != nil {
		return err
	}
	if outcome != "succeeded" && outcome != "failed" {
		return fmt.Errorf("outcome %q is unknown; it is one of succeeded, failed", outcome)
	}
	if err := s.authenticate3DS(nil, pi, outcome == "succeeded"); err != nil {
		return err
	}
	return nil
}

// SettlePayment ends a payment that is processing: it succeeded, or failed. A
// checkout session that it pays ends with it.
func (s *Server) SettlePayment(intent, outcome string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.happen()
	pi, err := s.find("payment_intent", intent, "intent")
	switch {
	case err != nil:
		return err
	case outcome != "succeeded" && outcome != "failed":
		return fmt.Errorf("outcome %q is unknown; it is one of succeeded, failed", outcome)
	case text(pi, "status") != "processing":
		return fmt.Errorf("payment intent %s has a status of %s: only one that is processing settles", intent, text(pi, "status"))
	}
	s.settleIntent(nil, pi, outcome == "succeeded")
	return nil
}

// EndRefund settles a pending refund (succeeded) or lets one fail (failed), even
// one that had succeeded.
func (s *Server) EndRefund(id, status string) error {
	if status == "failed" {
		return s.FailRefund(id, "")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.happen()
	o, err := s.find("refund", id, "id")
	switch {
	case err != nil:
		return err
	case status != "succeeded":
		return fmt.Errorf("status %q is unknown; it is one of succeeded, failed", status)
	case !unsettled(o):
		return refundStateError(o, status)
	}
	s.settleRefund(nil, o)
	return nil
}

// FailRefund lets a refund fail for one of Stripe's reasons, "" being
// expired_or_canceled_card. The money comes back.
func (s *Server) FailRefund(id, reason string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.happen()
	o, err := s.find("refund", id, "id")
	if reason == "" {
		reason = "expired_or_canceled_card"
	}
	switch {
	case err != nil:
		return err
	case !slices.Contains(refundFailures, reason):
		return fmt.Errorf("reason %q is unknown; it is one of %s", reason, strings.Join(refundFailures, ", "))
	case !unsettled(o) && text(o, "status") != "succeeded":
		return refundStateError(o, "failed")
	}
	s.endRefund(nil, o, "failed", reason)
	return nil
}
