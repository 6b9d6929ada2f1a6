// Package client meters an AI product against tallystick so that the safe way is
// the short way.
//
//	c, err := client.New(url, key)
//	…
//	_, err = c.Do(ctx, client.Reservation{Account: "acme", Meter: "llm.output_tokens", Quantity: client.Int(4000)},
//		func(ctx context.Context) (client.Actual, error) {
//			answer, err := model.Complete(ctx, prompt)
//			return client.Actual{Quantity: client.Int(answer.OutputTokens)}, err
//		})
//
// What it promises:
//
//	S1  Every write has an id before it is sent, and is sent again with the same id and
//	    bytes until its outcome is known, within a bound: nothing is charged twice.
//	S2  A call that was reserved for ends in exactly one of captured, released, in doubt
//	    (tallystick keeps the hold until somebody decides), or an error that says which
//	    ending did not get through.
//	S3  Without tallystick no call is made (ErrUnavailable), unless FailOpen says so: then
//	    its usage is on disk before Do returns, and is sent until it is recorded or
//	    refused for good, also by the next process.
//	S4  What the caller sees of a model's answer is not changed and not held back.
//
// What it does not promise: a process that dies while the model works has not said how
// that ended. The reservation then expires; a call that ran without one (FailOpen) is
// not known to anybody.
package client
