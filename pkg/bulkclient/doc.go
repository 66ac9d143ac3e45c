// Package bulkclient is a client for FHIR Bulk Data exports of a Group: it kicks off an export, polls its status, and
// downloads its files into a folder. It works with Sluice and with any server of the HL7 Bulk Data Access IG.
//
//	client, err := bulkclient.New(bulkclient.Config{Base: base, Tokens: tokens, IG: true, Parallel: 4})
//	...
//	defer client.Close()
//	report, err := client.Export(ctx, bulkclient.Request{Group: "cohort"}, bulkclient.Options{Dir: "export"})
//
// [Client.Export] runs the whole protocol. [Client.KickOff], [Client.Await] and [Client.Cancel] are its single steps, and
// [Verify] checks a finished folder again. [NewTokenSource] returns the tokens of a SMART Backend Services client.
//
// A file gets its final name only after its checks: the digest of the stored representation (Repr-Digest, RFC 9530), the
// gzip checksum, the number of lines and the type of every line. A lost connection or a killed process loses no
// downloaded bytes: Export with Options.Resume continues in the same folder with ranges that are conditional on the
// file's ETag. Memory use does not depend on the size of a file.
//
// The client sends its token only to the origin of the base URL, and writes only directly inside the folder, whatever
// names the server chooses. It writes nothing to a terminal: an [Observer] receives its progress.
package bulkclient
