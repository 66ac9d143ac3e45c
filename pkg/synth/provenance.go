package synth

var (
	provenanceAuthor      = concept{terminology + "provenance-participant-type", "author", "Author"}
	provenanceTransmitter = concept{coreCodes + "us-core-provenance-participant-type", "transmitter", "Transmitter"}
)

// writeProvenance writes the Provenance of the targets, which are all about this patient.
func (c *chart) writeProvenance(at instant, organization, author reference, targets ...reference) {
	l := c.open(provenanceKind, c.newID(), at+minute, "us-core-provenance")
	l.refs("target", targets...).when("recorded", at+minute)
	l.raw(`,"agent":[{"type":`).codeable(provenanceAuthor)
	l.ref("who", author).ref("onBehalfOf", organization)
	l.raw(`},{"type":`).codeable(provenanceTransmitter)
	l.ref("who", organization).raw(`}]`)
	l.close()
}
