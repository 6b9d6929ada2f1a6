package conformance

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"tallystick/stripesim"
)

// TestCurl plays what a person would type.
func TestCurl(t *testing.T) {
	t.Parallel()
	sim := stripesim.New(t)
	play := exec.CommandContext(t.Context(), "sh", "curl.sh")
	play.Env = append(os.Environ(), "STRIPESIM_URL="+sim.URL, "STRIPESIM_KEY="+sim.Key)
	out, err := play.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if n := strings.Count(string(out), "ok: "); n < 40 {
		t.Errorf("only %d steps were played:\n%s", n, out)
	}
}
