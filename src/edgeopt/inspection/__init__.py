"""What a model or an artifact holds: parameters, multiply-accumulates, layers, inputs, outputs, operators."""
