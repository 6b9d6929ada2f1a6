package webhooks

// disputeHandlers are for disputes. Each event leads to the payment, whose
// disputes are then read with the money that has moved: an inquiry moves none.
var disputeHandlers = map[string]handler{
	"charge.dispute.created":          {lead: moneyBackLead},
	"charge.dispute.updated":          {lead: moneyBackLead},
	"charge.dispute.funds_withdrawn":  {lead: moneyBackLead},
	"charge.dispute.funds_reinstated": {lead: moneyBackLead},
	"charge.dispute.closed":           {lead: moneyBackLead},
}
