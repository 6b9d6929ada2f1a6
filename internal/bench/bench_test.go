package bench

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"tallystick/api"
)

func TestPercentilesAndRates(t *testing.T) {
	t.Parallel()
	none := &measurement{}
	if none.percentile(99) != 0 || none.perSecond() != 0 {
		t.Errorf("nothing measured gives %v and %d", none.percentile(99), none.perSecond())
	}
	m := &measurement{usages: 100, took: 2 * time.Second}
	for i := range 100 {
		m.each = append(m.each, time.Duration(i+1))
	}
	if m.percentile(50) != 51 || m.percentile(99) != 100 || m.percentile(100) != 100 || m.perSecond() != 50 {
		t.Errorf("p50 %d, p99 %d, p100 %d, %d a second", m.percentile(50), m.percentile(99), m.percentile(100), m.perSecond())
	}
	if percent(1, 0) != 0 || percent(1, 3) != 33 {
		t.Errorf("percentages are %d and %d", percent(1, 0), percent(1, 3))
	}
}

func TestAUsageIsWhatTheAPITakes(t *testing.T) {
	t.Parallel()
	var q api.UsageRequest
	if err := json.Unmarshal(appendUsage(nil, shape{accounts: 10, bound: true}, 1234), &q); err != nil {
		t.Fatal(err)
	}
	if q.ID != "bench-usage-1234" || q.Account != "bench-account-4" || q.Meter != "llm.bound_tokens" || q.Quantity != "235" || q.Dimensions["model"] != "large" {
		t.Errorf("the usage is %+v", q)
	}
}

func TestTheBareScriptHasItsRows(t *testing.T) {
	t.Parallel()
	if n := strings.Count(bareScript(100), "llm.output_tokens"); n != 100 {
		t.Errorf("the script has %d rows, want 100", n)
	}
}

func TestCPUOfThisProcessGrows(t *testing.T) {
	t.Parallel()
	before := cpuOf(os.Getpid())
	for cpuOfTree(os.Getpid()) <= before { // burns until the kernel has counted a tick
		_ = bareScript(100)
	}
	if cpuOf(-1) != 0 {
		t.Error("a process that is not there has used something")
	}
}
