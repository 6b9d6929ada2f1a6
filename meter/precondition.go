package meter

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"tallystick/internal/fault"
)

var (
	errStale       = &fault.Error{Kind: fault.KindPrecondition, Code: "precondition_failed", Public: "it has been changed, or is not there, since it was read: nothing was changed; read it again and decide anew"}
	errIfMatchForm = &fault.Error{Kind: fault.KindInvalid, Code: "invalid_request", Public: "If-Match must be *, or one or more ETags in their quotes, as they were answered"}
)

// tag is the ETag of something that is put whole: it changes with every PUT. The
// time is part of it because a process of an older version raises no revision.
func tag(revision int, updatedAt time.Time) string {
	return strconv.Quote(strconv.Itoa(revision) + "-" + strconv.FormatInt(updatedAt.UnixMicro(), 36))
}

// precondition is what a change depends on: the values of If-Match. None is no condition.
type precondition []string

func preconditionOf(r *http.Request) (p precondition, err error) {
	for _, value := range r.Header.Values("If-Match") {
		for one := range strings.SplitSeq(value, ",") {
			one = strings.TrimSpace(one)
			opaque := strings.TrimPrefix(one, "W/")
			if one != "*" && (len(opaque) < 2 || opaque[0] != '"' || strings.IndexByte(opaque[1:], '"') != len(opaque)-2) {
				return nil, errIfMatchForm
			}
			p = append(p, one)
		}
	}
	return p, nil
}

// holds gives errStale where what stands, "" for nothing, is not what the caller
// read. A weak tag never holds, as RFC 9110 wants it.
func (p precondition) holds(stands string) error {
	for _, one := range p {
		if stands != "" && (one == "*" || one == stands) {
			return nil
		}
	}
	if len(p) == 0 {
		return nil
	}
	return errStale
}
