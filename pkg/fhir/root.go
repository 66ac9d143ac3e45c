package fhir

// EachMember calls member for each member of a JSON object, in the order of the line, with the unquoted key, the whole
// member (quoted key, colon and value), and the value. It does not refuse duplicate keys. The errors are those of
// Scanner.Scan about JSON, except for UTF-8, which it does not check.
func EachMember(object []byte, member func(key, whole, value []byte)) error {
	i := space(object, 0)
	if i == len(object) || object[i] != '{' {
		return errNoObject
	}
	i = space(object, i+1)
	if i < len(object) && object[i] == '}' {
		return only(object, i+1)
	}
	for {
		keyEnd, start, err := key(object, i)
		if err != nil {
			return err
		}
		end, err := value(object, start, 1)
		if err != nil {
			return err
		}
		member(unquote(object, i, keyEnd), object[i:end], object[start:end])
		switch i = space(object, end); {
		case i == len(object):
			return fault(cutOff, i)
		case object[i] == '}':
			return only(object, i+1)
		case object[i] != ',':
			return fault("a comma is missing", i)
		}
		i = space(object, i+1)
	}
}

// only returns an error unless the line ends at i.
func only(line []byte, i int) error {
	if space(line, i) != len(line) {
		return errTrailing
	}
	return nil
}
