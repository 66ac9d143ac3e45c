package fhir

// Fields finds the values of the named members of the object at the start of text and returns the end of the object. values
// has one entry for each name: a part of text, or nil for a member that the object does not have. Fields checks that the
// object is valid JSON without line breaks, and refuses what Members refuses. It allocates nothing.
func Fields(text []byte, names []string, values [][]byte) (end int, err error) {
	clear(values)
	i := space(text, 0)
	if i == len(text) || text[i] != '{' {
		return 0, errNoObject
	}
	return members(text, i, func(key []byte, start int) (int, error) {
		end, err := value(text, start, 1)
		if err != nil {
			return 0, err
		}
		for n, name := range names {
			switch {
			case len(key) < len(name): // most names of a long list
			case string(key) == name && values[n] != nil:
				return 0, errDuplicate
			case string(key) == name:
				values[n] = text[start:end:end]
			case similar(key, name):
				return 0, errSimilar
			}
		}
		return end, nil
	})
}

// OnlyFields is Fields for a text that has nothing but the object.
func OnlyFields(text []byte, names []string, values [][]byte) error {
	end, err := Fields(text, names, values)
	if err == nil && space(text, end) != len(text) {
		err = errTrailing
	}
	return err
}

// Elements calls element for each element of a JSON array that Fields returned, until it returns false or an error.
func Elements(array []byte, element func(value []byte) (more bool, err error)) error {
	i := space(array, 1)
	for i < len(array) && array[i] != ']' {
		end, err := value(array, i, 1)
		if err != nil {
			return err
		}
		if more, err := element(array[i:end:end]); err != nil || !more {
			return err
		}
		if i = space(array, end); i < len(array) && array[i] == ',' {
			i = space(array, i+1)
		}
	}
	return nil
}

// Text returns the text of a JSON string that Fields returned, nil for any other value.
func Text(value []byte) []byte {
	if len(value) == 0 {
		return nil
	}
	return unquote(value, 0, len(value))
}
