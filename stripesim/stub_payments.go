package stripesim

import (
	"net/http"
	"strings"
)

func (s *Server) chargeInvoice(c *call, invoice object, method string) (intent object, paid bool) {
	pi := s.store.get("payment_intent", text(invoice, "payment_intent"))
	if pi == nil || text(pi, "status") == "canceled" {
		pi = s.makeIntent(c, number(invoice, "amount_remaining"), text(invoice, "currency"), invoice["customer"], object{})
		s.change("payment_intent", pi, object{"invoice": invoice["id"]})
	}
	s.change("payment_intent", pi, object{"amount": number(invoice, "amount_remaining")})
	if strings.Contains(method, "chargeDeclined") {
		_ = s.decline(c, pi) // told by paid
		return pi, false
	}
	s.succeed(c, pi)
	s.change("charge", s.store.get("charge", text(pi, "latest_charge")), object{"invoice": invoice["id"]})
	return pi, true
}

func (s *Server) refundCharge(c *call, charge object, amount int64, reason any, metadata object) (object, *apiError) {
	refund := &call{s: s, r: &http.Request{Method: http.MethodPost}, params: params{object{"charge": charge["id"], "amount": amount, "metadata": metadata}}}
	if c != nil {
		refund.id, refund.key = c.id, c.key
	}
	if reason != nil {
		refund.values["reason"] = reason
	}
	return s.makeRefund(refund)
}
