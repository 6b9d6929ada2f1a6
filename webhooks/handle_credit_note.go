package webhooks

// creditNoteHandlers are for credit notes, which lead to their invoice.
var creditNoteHandlers = map[string]handler{
	"credit_note.created": {lead: creditNoteLead},
	"credit_note.updated": {lead: creditNoteLead},
	"credit_note.voided":  {lead: creditNoteLead},
}

func creditNoteLead(object []byte) (string, error) {
	i, err := readIDs(object)
	return i.Invoice.ID, err
}
